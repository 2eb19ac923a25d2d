// Package treetest describes directory trees for tests, so that what different programs unpacked or
// mounted can be compared: names, types, modes, owners, times, sizes, devices, link counts, contents
// and extended attributes.
package treetest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Need skips the test for a reason, or fails it where the environment variable CI is set: there
// everything has to run.
func Need(t testing.TB, ok bool, what, remedy string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") != "":
		t.Fatalf("needs %s: %s", what, remedy)
	default:
		t.Skipf("needs %s: %s", what, remedy)
	}
}

// NeedRoot skips a test that only root of the host can run, to do what why says. It does so with -short, too: such
// tests are slow, and that tier is the one that everybody runs.
func NeedRoot(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("it needs root, %s: run without -short", why)
	}
	Need(t, os.Geteuid() == 0, "root, "+why, "run the test as root")
}

// Diff returns the differences of two descriptions, at most 30 lines, or nothing.
func Diff(want, got map[string]string) string {
	var out []string
	for path, w := range want {
		if g, ok := got[path]; !ok {
			out = append(out, fmt.Sprintf("%s: missing, want %s", path, w))
		} else if g != w {
			out = append(out, fmt.Sprintf("%s:\n  want %s\n  got  %s", path, w, g))
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			out = append(out, fmt.Sprintf("%s: not expected: %s", path, g))
		}
	}
	slices.Sort(out)
	if len(out) > 30 {
		out = append(out[:30], fmt.Sprintf("... and %d more", len(out)-30))
	}
	return strings.Join(out, "\n")
}

// Run runs a program and fails the test when it fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/sbin/" + name)
	}
	Need(t, err == nil, "the program "+name, "install it (e2fsprogs, erofs-utils, tar, umoci, qemu-utils)")
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
