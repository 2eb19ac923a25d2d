package hostmount_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/hostmount"
)

// TestProcessName: a process in a container has the number that it has there, also if it is in a PID namespace that a
// program in the container made.
func TestProcessName(t *testing.T) {
	const apart = syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID
	outside := func(pid string) string { return "process " + pid + " (sleep)" }
	inside := func(pid string) func(string) string {
		return func(string) string { return "process " + pid + " (sleep)" + hostmount.InContainer }
	}
	for name, tt := range map[string]struct {
		args        []string
		flags       uintptr
		inContainer bool
		want        func(pid string) string
	}{
		"of this system":                   {[]string{"sleep", "1000"}, 0, false, outside},
		"in a container without namespace": {[]string{"sleep", "1000"}, 0, true, outside},
		"of something else":                {[]string{"sleep", "1000"}, apart, false, outside},
		"in a container":                   {[]string{"sleep", "1000"}, apart, true, inside("1")},
		"deeper in a container": {[]string{"unshare", "--pid", "--fork", "sleep", "1000"}, apart, true,
			inside("2")},
	} {
		t.Run(name, func(t *testing.T) {
			c := exec.Command(tt.args[0], tt.args[1:]...)
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: tt.flags}
			if tt.flags != 0 {
				c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			}
			if err := c.Start(); err != nil {
				t.Skipf("no such process can be started: %v", err)
			}
			ended := make(chan struct{})
			go func() {
				_ = c.Wait()
				close(ended)
			}()
			defer func() {
				_ = c.Process.Kill()
				<-ended
			}()
			pid := fmt.Sprint(c.Process.Pid)
			for tt.args[0] != "sleep" { // until its child is one
				select {
				case <-ended:
					t.Skipf("%s has ended", tt.args[0])
				case <-time.After(10 * time.Millisecond):
				}
				b, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
				child := strings.TrimSpace(string(b))
				if comm, _ := os.ReadFile("/proc/" + child + "/comm"); string(comm) == "sleep\n" {
					pid = child
					break
				}
			}
			if got, want := hostmount.ProcessName("/proc/"+pid, tt.inContainer), tt.want(pid); got != want {
				t.Errorf("%q instead of %q", got, want)
			}
		})
	}
}
