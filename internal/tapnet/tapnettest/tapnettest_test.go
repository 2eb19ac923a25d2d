//go:build linux

package tapnettest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestAbandoned leaves a namespace as a test that is killed does.
func TestAbandoned(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	p := New(t)
	left := fmt.Sprintf("strata-%d-1", dead.Process.Pid)
	p.IP(t, "netns", "add", left)
	names := Abandoned(t)
	if _, err := os.Stat(dir + "/" + left); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", left, err)
	}
	if _, err := os.Stat(p.Path); err != nil || slices.Contains(names, p.Name()) {
		t.Errorf("that of a test that runs is gone: %v, %q", err, names)
	}
}
