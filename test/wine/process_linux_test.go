package winetest

import (
	"io"
	"strings"

	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// copyProcess is the process of guests in these tests: it writes its input to its output and its
// arguments to its errors.
func copyProcess(p hcstest.ProcessParameters, stdin io.Reader, stdout, stderr io.Writer) uint32 {
	if _, err := io.Copy(stdout, stdin); err != nil {
		return 1
	}
	if _, err := io.WriteString(stderr, strings.Join(p.CommandArgs, " ")); err != nil {
		return 1
	}
	return copyCode
}
