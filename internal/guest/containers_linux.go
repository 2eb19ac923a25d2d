package guest

import (
	"fmt"
	"log/slog"
	"os"
)

// NewContainers gives a Runtime for containers in this very system, without a guest: of its methods
// those about containers and processes are of use. Roots lie below base. self is the program that is
// started as the first process of each container; its main calls [Stage] first thing. Containers end
// with this process.
func NewContainers(log *slog.Logger, base, self string) (Runtime, error) {
	if os.Args[0] == stageName {
		// Without this check such a program would start itself without end.
		return nil, fmt.Errorf("this program was started as the first process of a container, but its main does not call Stage: %w", errInvalid)
	}
	return newLinuxRuntime(log, base, self, &devices{}, newSpawner(false)), nil
}
