package leaktest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// victimEnv makes TestGuardVictim run. Its value is a file for what it has started.
const victimEnv = "STRATA_TEST_VICTIM"

// TestGuardVictim is killed by TestKilledTestsLeaveNothing. It leaves a program of a session of its own
// and, as root, a mount.
func TestGuardVictim(t *testing.T) {
	report := os.Getenv(victimEnv)
	if report == "" {
		t.Skip("it runs as a child of TestKilledTestsLeaveNothing only")
	}
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "600")
	sleep.Stdin, sleep.SysProcAttr = f, &syscall.SysProcAttr{Setsid: true}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%d %d %s", os.Getpid(), sleep.Process.Pid, os.Getenv("TMPDIR"))
	if err := os.WriteFile(report+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(report+".new", report); err != nil {
		t.Fatal(err)
	}
	select {}
}

// TestKilledTestsLeaveNothing kills "go test" and a test binary while tests run that have programs and
// mounts: soon all of it is gone.
func TestKilledTestsLeaveNothing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signal syscall.Signal
		tests  bool // whether the test binary is killed, not "go test"
	}{
		{"go test is terminated", unix.SIGTERM, false},
		{"go test is killed", unix.SIGKILL, false},
		{"the test binary is killed", unix.SIGKILL, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			report := filepath.Join(t.TempDir(), "report")
			cmd := exec.Command("go", "test", "-run", "^TestGuardVictim$", "-count=1", ".")
			cmd.Env = append(os.Environ(), victimEnv+"="+report, guardedEnv+"=")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.WaitDelay = time.Second // the guard holds them a little longer
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			var text []byte
			eventually(t, &out, "the victim runs", func() bool {
				var err error
				text, err = os.ReadFile(report)
				return err == nil
			})
			f := strings.Fields(string(text))
			tests, sleep, dir := number(t, f[0]), number(t, f[1]), f[2]
			target := cmd.Process.Pid
			if tt.tests {
				target = tests
			}
			if err := unix.Kill(target, tt.signal); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err == nil {
				t.Error("go test says that all is well")
			}
			eventually(t, &out, "everything is gone", func() bool {
				_, err := os.Stat(dir)
				return os.IsNotExist(err) && !alive(tests) && !alive(sleep)
			})
		})
	}
}

func eventually(t *testing.T, out *bytes.Buffer, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s: it takes too long\n%s", what, out)
		}
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// alive reports whether a process runs; one that nobody waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
