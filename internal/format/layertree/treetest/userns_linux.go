package treetest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// insideVar tells a test program which of its tests is run in a user namespace.
const insideVar = "STRATA_TEST_USERNS"

// firstID is that of this system which is root in the namespaces of tests: it owns nothing.
const firstID = 1_000_000_000

// InUserNamespace reports whether the calling test runs in a user namespace with mounts of its own and
// so many ids. Where it does not, it is run there now, by another process, and fails as that one does.
func InUserNamespace(t *testing.T, ids int) bool {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		return true
	}
	NeedRoot(t, "to choose the ids of a user namespace")
	// What the test makes belongs to the namespace, and the program has to be in its reach.
	dir, err := os.MkdirTemp("", "strata-userns-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(dir, "program")
	if err := copyProgram(program); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, firstID, firstID); err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^")
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^"+name+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name(), "TMPDIR="+dir, "HOME="+dir)
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: ids}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: one, GidMappings: one, GidMappingsEnableSetgroups: ids > 1,
		Credential: &syscall.Credential{NoSetGroups: ids == 1}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a user namespace with %d ids: %v\n%s", ids, err, out)
	} else if want := fmt.Sprintf("--- PASS: %s ", t.Name()); !strings.Contains(string(out), want) {
		t.Skipf("in a user namespace with %d ids:\n%s", ids, out)
	}
	return false
}

func copyProgram(to string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, self); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
