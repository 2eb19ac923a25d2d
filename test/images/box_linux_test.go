package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// packages are those of the image, besides what Debian calls essential.
const packages = "nginx-light,sqlite3"

// name of the image in the store.
const debian = "debian"

// patience bounds whatever a test waits for. It is no expectation of speed.
const patience = 90 * time.Second

// world is what all tests of a run share: the command, and a state directory whose store has the image.
var world = sync.OnceValues(func() (b box, err error) {
	dir, err := os.MkdirTemp("", "strata-images-*") // leaktest.Main removes it
	if err != nil {
		return b, err
	}
	b = box{strata: filepath.Join(dir, "strata"), init: filepath.Join(dir, "strata-init"),
		state: filepath.Join(dir, "state")}
	for at, folder := range map[string]string{b.strata: "cmd/strata", b.init: "cmd/strata-init"} {
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", at, "github.com/stratavm/strata/"+folder)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return b, fmt.Errorf("building %s: %w\n%s", folder, err, out)
		}
	}
	root := os.Getenv("STRATA_TEST_ROOT")
	if root == "" {
		root = filepath.Join(dir, "root.tar")
	}
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		args := []string{"--quiet", "--mode=root", "--variant=essential", "--include=" + packages}
		for _, what := range []string{"doc", "man", "locale", "info"} {
			args = append(args, "--dpkgopt=path-exclude=/usr/share/"+what+"/*")
		}
		if out, err := exec.Command("mmdebstrap", append(args, "bookworm", root+".new.tar")...).CombinedOutput(); err != nil {
			return b, fmt.Errorf("mmdebstrap: %w\n%s", err, out)
		}
		if err := os.Rename(root+".new.tar", root); err != nil {
			return b, err
		}
	}
	// Under this name, and with the folders there that tests look for leaks in.
	err = os.Symlink(root, filepath.Join(dir, debian+".tar"))
	if out, perr := b.command("pull", filepath.Join(dir, debian+".tar")).CombinedOutput(); perr != nil {
		err = errors.Join(err, fmt.Errorf("strata pull: %w\n%s", perr, out))
	}
	for _, folder := range b.folders() {
		err = errors.Join(err, os.MkdirAll(folder, 0o700))
	}
	return b, err
})

// box is the command line on a state directory.
type box struct {
	t                   *testing.T
	strata, init, state string
	env                 []string
}

// folders are those of the state directory in which nothing may be left.
func (b box) folders() (dirs []string) {
	for _, name := range []string{"run", "vms", "containers"} {
		dirs = append(dirs, filepath.Join(b.state, name))
	}
	return dirs
}

// newBox is the box for a test, with the image of all, which leaves nothing.
func newBox(t *testing.T) box {
	t.Helper()
	treetest.NeedRoot(t, "to mount, to share folders and to make the image")
	if testing.Short() {
		t.Skip("it makes an image: run without -short")
	}
	for program, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "crun": "crun", "slirp4netns": "slirp4netns"} {
		_, err := exec.LookPath(program)
		treetest.Need(t, err == nil, program, "apt-get install "+pkg)
	}
	b, err := world()
	if err != nil {
		t.Fatal(err)
	}
	b.t = t
	leaktest.Check(t, b.folders()...)
	t.Cleanup(b.tidy)
	return b
}

// tidy ends and removes what a test left that has failed.
func (b box) tidy() {
	out, _ := b.command("ps", "-aq").Output()
	for _, id := range strings.Fields(string(out)) {
		said, err := b.command("rm", "-f", id).CombinedOutput()
		b.t.Logf("the test left container %s: %v %s", id, err, said)
	}
	vms, _ := os.ReadDir(filepath.Join(b.state, "vms")) // none is fine
	for _, vm := range vms {
		if vm.Name() == "host" { // it goes when nothing is in it
			continue
		}
		said, err := b.command("vm", "stop", "--force", vm.Name()).CombinedOutput()
		b.t.Logf("the test left VM %s: %v %s", vm.Name(), err, said)
	}
	if out, err := b.command("recover").CombinedOutput(); err != nil {
		b.t.Errorf("recover: %v %s", err, out)
	}
	if out, err := b.command("volume", "prune", "--all").CombinedOutput(); err != nil {
		b.t.Errorf("volume prune: %v %s", err, out)
	}
}

// needVM skips where no VM can be started.
func (b box) needVM() {
	b.t.Helper()
	bootimagetest.ImageOf(b.t, b.init)
}

func (b box) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.strata, args...)
	cmd.Env = append(append(os.Environ(), "STRATA_STATE_DIR="+b.state, "STRATA_INIT="+b.init), b.env...)
	return cmd
}

// try runs a command to its end, which it reaches: a command that hangs is killed and fails the test.
func (b box) try(args ...string) (stdout, stderr string, code int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*patience)
	defer cancel()
	cmd := b.command(args...)
	limited := exec.CommandContext(ctx, cmd.Path, args...)
	limited.Env = cmd.Env
	var out, said bytes.Buffer
	limited.Stdout, limited.Stderr = &out, &said
	err := limited.Run()
	if ctx.Err() != nil {
		b.t.Fatalf("strata %q hangs: %s", args, &said)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		b.t.Fatal(err)
	}
	return out.String(), said.String(), limited.ProcessState.ExitCode()
}

// run runs a command that succeeds, and returns what it printed.
func (b box) run(args ...string) string {
	b.t.Helper()
	stdout, stderr, code := b.try(args...)
	if code != 0 {
		b.t.Fatalf("strata %q: exit code %d: %s", args, code, stderr)
	}
	return stdout
}

// fails runs a command that fails, and returns what it said.
func (b box) fails(args ...string) string {
	b.t.Helper()
	stdout, stderr, code := b.try(args...)
	if code == 0 {
		b.t.Fatalf("strata %q succeeds: %s%s", args, stdout, stderr)
	}
	return stderr
}

// record is what inspect tells of a container.
type record struct {
	State      string `json:"state"`
	ExitCode   int    `json:"exitCode"`
	Error      string `json:"error"`
	OOMKilled  bool   `json:"oomKilled"`
	Supervisor int    `json:"supervisor"`
}

func (b box) inspect(name string) record {
	b.t.Helper()
	var list []record
	if err := json.Unmarshal([]byte(b.run("inspect", name)), &list); err != nil || len(list) != 1 {
		b.t.Fatalf("inspect %s: %v, %v", name, list, err)
	}
	return list[0]
}

// eventually waits until something is so.
func (b box) eventually(what string, so func() bool) {
	b.t.Helper()
	for until := time.Now().Add(patience); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			b.t.Fatalf("it never is so: %s", what)
		}
	}
}

// kill kills a process and waits until it has ended.
func (b box) kill(pid int) {
	b.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		b.t.Fatal(err)
	}
	b.eventually(fmt.Sprintf("process %d ends", pid), func() bool { return leaktest.Ended(pid) })
}

// servants are the processes that a process has started, or one that it started: their numbers by their names.
func servants(parent int) map[string][]int {
	found := map[string][]int{}
	entries, _ := filepath.Glob("/proc/[0-9]*/stat") // there is no bad pattern in it
	type process struct {
		name   string
		parent int
	}
	all := map[int]process{}
	for _, path := range entries {
		stat, err := os.ReadFile(path)
		begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if err != nil || begin < 0 || end < begin {
			continue // it has ended
		}
		var pid, ppid int
		var state string
		_, err = fmt.Sscan(string(stat[:begin]), &pid)
		if _, serr := fmt.Sscan(string(stat[end+1:]), &state, &ppid); err == nil && serr == nil && state != "Z" {
			all[pid] = process{string(stat[begin+1 : end]), ppid}
		}
	}
	for pid, p := range all {
		for up := p.parent; up > 1; up = all[up].parent {
			if up == parent {
				found[p.name] = append(found[p.name], pid)
				break
			}
		}
	}
	return found
}

// isolations are the flags of run for each kind of container.
var isolations = map[string][]string{"VM": nil, "process": {"--isolation=process"}}

// both runs a test in each kind of container. flags come after "run".
func both(t *testing.T, test func(t *testing.T, b box, flags []string)) {
	for name, flags := range isolations {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			if name == "VM" {
				b.needVM()
			}
			test(t, b, flags)
		})
	}
}

// start runs a container that is left to itself.
func (b box) start(flags []string, args ...string) {
	b.t.Helper()
	b.run(append(append([]string{"run", "-d"}, flags...), args...)...)
}
