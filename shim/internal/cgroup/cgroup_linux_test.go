package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// What the test's program joins when it is started again, until its input ends: a group, or one of version 2.
const (
	joinEnv  = "STRATA_TEST_JOIN"
	join2Env = "STRATA_TEST_JOIN2"
)

// hybrid is where the hierarchy of version 2 is beside those of version 1.
const hybrid = "/sys/fs/cgroup/unified"

func TestMain(m *testing.M) {
	join := Join
	name := os.Getenv(joinEnv)
	if name == "" {
		name, join = os.Getenv(join2Env), func(name string) error { return join2(hybrid, name) }
	}
	if name == "" {
		os.Exit(m.Run())
	}
	if err := join(name); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("joined")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// groups are the control groups that a process is in, in all hierarchies.
func groups(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestJoin: a process is in a group, which stays until the process has ended.
func TestJoin(t *testing.T) {
	testJoin(t, joinEnv, "", remove, Stat, Makes)
}

// TestJoin2 does so in the hierarchy of version 2 of a host that has both.
func TestJoin2(t *testing.T) {
	if _, err := os.Stat(hybrid + "/cgroup.procs"); err != nil { // then TestJoin has tested either
		t.Log(err)
		return
	}
	testJoin(t, join2Env, "0:", func(p string) error { return remove2(hybrid, p) },
		func(p string) (any, error) { return stat2(hybrid, p) }, func(p string) bool { return missing2(hybrid, p) })
}

func testJoin(t *testing.T, env, hierarchy string, remove func(string) error,
	stat func(string) (any, error), makes func(string) bool) {
	treetest.NeedRoot(t, "to make control groups")
	base := fmt.Sprintf("/strata-test-%d", os.Getpid())
	name := base + "/pod/a"
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), env+"="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 4096)
	n, _ := out.Read(said)
	if string(said[:n]) != "joined\n" {
		t.Errorf("the process says %q", said[:n])
	}
	if got := groups(t, cmd.Process.Pid); !strings.Contains(got, hierarchy+":"+name+"\n") {
		t.Errorf("the process is in %s", got)
	}
	if m, err := stat(name); err != nil {
		t.Errorf("statistics: %v, %v", m, err)
	}
	if err := remove(name); !errors.Is(err, ErrInUse) {
		t.Errorf("a group with a process in it is removed: %v", err)
	}
	if makes(name) || !makes(name+"/none") {
		t.Error("a group that there is would be made, or one that there is not would not")
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, p := range []string{name, name, base + "/pod", base} {
		if err := remove(p); err != nil {
			t.Error(err)
		}
	}
}

func TestRemoveNone(t *testing.T) {
	if err := Remove(t.Context(), "/strata-test-none"); err != nil {
		t.Errorf("a group that does not exist: %v", err)
	}
}

func TestRefused(t *testing.T) {
	if err := Join("kubepods.slice:cri-containerd:a"); !errors.Is(err, ErrSystemd) {
		t.Errorf("a group of systemd: %v", err)
	}
	for _, name := range []string{"", "/", "..", "/a/../.."} {
		if err := Join(name); err == nil {
			t.Errorf("%q: joined", name)
		}
		if err := Remove(t.Context(), name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}
