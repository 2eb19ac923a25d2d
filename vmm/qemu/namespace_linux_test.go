package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/internal/tapnet/tapnettest"
	"github.com/stratavm/strata/vmm"
)

// TestStartIn starts a program in each kind of network namespace.
func TestStartIn(t *testing.T) {
	p := tapnettest.New(t) // which is skipped where none can be made
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Stat(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	for namespace, same := range map[string]struct{ own, theirs bool }{
		"": {own: true}, vmm.NewNamespace: {}, p.Path: {theirs: true},
	} {
		child, err := startIn(namespace, "/bin/sleep", []string{"sleep", "1000"},
			&os.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{}})
		if err != nil {
			t.Errorf("%q: %v", namespace, err)
			continue
		}
		is, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", child.Pid))
		if err != nil || os.SameFile(is, own) != same.own || os.SameFile(is, theirs) != same.theirs {
			t.Errorf("%q: it is in another one: %v", namespace, err)
		}
		if err := child.Kill(); err != nil {
			t.Error(err)
		}
		if _, err := child.Wait(); err != nil {
			t.Error(err)
		}
	}
	if _, err := startIn(filepath.Join(t.TempDir(), "none"), "/bin/true", []string{"true"}, &os.ProcAttr{}); !errors.Is(
		err, tapnet.ErrNoNamespace) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	_, err = startIn("/proc/self/ns/net", "/bin/true", []string{"true"}, &os.ProcAttr{})
	if !errors.Is(err, tapnet.ErrOwn) {
		t.Errorf("that of this process: %v", err)
	}
}
