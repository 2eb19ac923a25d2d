package images

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// hide runs a command where programs are not to be found, and returns what it printed and its exit code.
func (b box) hide(programs []string, args ...string) (string, int) {
	b.t.Helper()
	script := "set -e\n"
	for _, p := range programs {
		if path, err := exec.LookPath(p); err == nil {
			script += "mount --bind /dev/null " + path + "\n"
		}
	}
	plain := b.command(args...)
	cmd := exec.CommandContext(b.t.Context(), "unshare", append([]string{"-m", "sh", "-c", script + `exec "$0" "$@"`,
		b.strata}, args...)...)
	cmd.Env = plain.Env
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		b.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestNoRuntime: where no program runs containers the error names the package that has one, before a VM is started.
func TestNoRuntime(t *testing.T) {
	b := newBox(t)
	for name, flags := range isolations {
		args := append(append([]string{"run"}, flags...), debian, "true")
		out, code := b.hide([]string{"crun", "runc"}, args...)
		if code != 125 || !strings.Contains(out, "apt-get install crun") || strings.Contains(out, "guest") {
			t.Errorf("%s: exit code %d: %s", name, code, out)
		}
	}
}

// TestRunc: runc does what crun does, where there is no crun.
func TestRunc(t *testing.T) {
	b := newBox(t)
	_, err := exec.LookPath("runc")
	treetest.Need(t, err == nil, "runc", "apt-get install runc")
	strata := func(want string, args ...string) {
		t.Helper()
		if out, code := b.hide([]string{"crun"}, args...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("strata %q: exit code %d, %q, want %q in it", args, code, out, want)
		}
	}
	process := func(args ...string) []string { return append([]string{"run", "--isolation=process"}, args...) }
	strata("uid=33(www-data)", process("-u", "www-data", "-w", "/tmp", debian, "id")...)
	strata("67108864", process("-m", "64m", "--pids-limit", "20", debian, "sh", "-c",
		"cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true")...)
	strata("CapEff:\t0000000000000000", process("--cap-drop", "ALL", debian, "cat", "/proc/self/status")...)
	strata("Seccomp:\t2", process(debian, "cat", "/proc/self/status")...)
	strata("nameserver 10.0.2.3", process("--network", "user", debian, "cat", "/etc/resolv.conf")...)
	strata("", process("-d", "--name", "web", "-v", t.TempDir()+":/d", debian, "sleep", "1000")...)
	strata("web", "ps")
	strata("uid=0(root)", "exec", "web", "id")
	strata(" web ", "stats", "--no-stream")
	strata("sleep 1000", "top", "web")
	strata("web", "stop", "-t", "1", "web")
	strata("web", "start", "web")
	strata("web", "kill", "web")
	strata("137", "wait", "web")
	strata("web", "rm", "web")
	if out, code := b.hide([]string{"crun"}, process(debian, "/nosuch")...); code != 127 {
		t.Errorf("no such program: exit code %d: %s", code, out)
	}
	if out, code := b.hide([]string{"crun"}, process(debian, "/etc/passwd")...); code != 126 {
		t.Errorf("no program: exit code %d: %s", code, out)
	}
}
