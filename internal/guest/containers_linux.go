package guest

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
)

// NewContainers returns a Runtime for containers in this very system, without a guest: of its methods
// those about containers and processes are of use. Roots lie below base. self is the program that is
// started as the first process of each container; its main calls [Stage] first thing. Containers end
// with this process.
func NewContainers(log *slog.Logger, base, self string) (gcsserver.Runtime, error) {
	if os.Args[0] == procs.StageName {
		// Without this check such a program would start itself without end.
		return nil, fmt.Errorf("this program was started as the first process of a container, "+
			"but its main does not call Stage: %w", gcsserver.ErrInvalid)
	}
	return newLinuxRuntime(log, self, procs.NewSpawner(false),
		mounts.Config{Base: base, Devices: &mounts.Devices{}}), nil
}

// Stage is to be called first thing in main with os.Args: see [procs.Stage].
func Stage(args []string) (exit int, handled bool) { return procs.Stage(args) }
