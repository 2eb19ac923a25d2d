package leaktest

import (
	"fmt"
	"os"
)

// Guarded are tests that run with a guard: see Main. It is for who wants a *testing.M of a kind.
type Guarded struct{ Tests interface{ Run() int } }

// Run is Main for package testscript.
func (g Guarded) Run() int { return Main(g.Tests) }

// Main runs the tests of a package and returns the exit code for os.Exit. Temporary folders of the
// tests lie in one folder of this run. On Linux a guard process stands by: when the tests end in
// whatever way, also killed, and when the "go test" that started them is gone, it ends what still works
// below that folder (such as a detached QEMU), unmounts what is mounted there, detaches loop devices and
// removes the folder. A test process that another one started is in the care of that one's guard.
func Main(m interface{ Run() int }) int {
	if os.Getenv(guardedEnv) != "" {
		return m.Run()
	}
	release, err := startGuard()
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the guard of the tests:", err)
		return 1
	}
	code := m.Run()
	if err := release(); err != nil {
		fmt.Fprintln(os.Stderr, "guard of the tests:", err)
		return 1
	}
	return code
}

// guardedEnv is set in test processes that have a guard, and in all that they start.
const guardedEnv = "STRATA_TEST_GUARDED"
