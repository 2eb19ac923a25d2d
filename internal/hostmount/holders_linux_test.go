package hostmount_test

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/hostmount"
)

// A process in a PID namespace of its own has the number that it has there.
func TestProcessName(t *testing.T) {
	for name, tt := range map[string]struct {
		flags uintptr
		want  func(pid int) string
	}{
		"of this system": {0, func(pid int) string { return fmt.Sprintf("process %d (sleep)", pid) }},
		"of a container": {syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
			func(int) string { return "process 1 (sleep)" + hostmount.InContainer }},
	} {
		t.Run(name, func(t *testing.T) {
			c := exec.Command("sleep", "1000")
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: tt.flags}
			if err := c.Start(); err != nil {
				t.Skipf("no such process can be started: %v", err)
			}
			defer func() {
				_ = c.Process.Kill()
				_ = c.Wait()
			}()
			if got := hostmount.ProcessName(fmt.Sprintf("/proc/%d", c.Process.Pid)); got != tt.want(c.Process.Pid) {
				t.Errorf("%q instead of %q", got, tt.want(c.Process.Pid))
			}
		})
	}
}
