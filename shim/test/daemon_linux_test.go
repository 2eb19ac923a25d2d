package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(tests{m})) }

// tests end the containerd that they share.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code := t.m.Run()
	if d := started.d; d != nil {
		if err := d.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "the end of containerd:", err)
			return 1
		}
	}
	return code
}

// limit bounds a call of ctr, which may boot a VM on a host that is busy.
const limit = 6 * time.Minute

// daemon is a containerd with folders of its own.
type daemon struct {
	dir string    // of everything
	bin string    // programs
	cmd *exec.Cmd // nil: it was not started

	others []string // control groups that were there before
}

var started struct {
	sync.Once
	d   *daemon
	err error
}

// need returns the containerd that all tests of the package share.
func need(t *testing.T) *daemon {
	t.Helper()
	if testing.Short() {
		t.Skip("boots VMs")
	}
	if os.Geteuid() != 0 {
		lacking(t, "containerd needs root")
	}
	for _, program := range []string{"qemu-system-x86_64", "crun", "catatonit", "busybox", "mkfs.ext4", "mkfs.erofs"} {
		if _, err := exec.LookPath(program); err != nil {
			lacking(t, err.Error())
		}
	}
	started.Do(func() {
		started.err = errors.New("the image was not made, see the first test") // it is made by helpers that end the test
		image := imageTar(t, image)
		started.d, started.err = start(image)
	})
	if started.err != nil {
		t.Fatal(started.err)
	}
	return started.d
}

// lacking makes a test that lacks something fail in CI and skip elsewhere.
func lacking(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// start builds everything and starts a containerd with an image, which ends with the tests: their guard sees to it.
// When it fails nothing is left.
func start(image []byte) (_ *daemon, err error) {
	dir, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		return nil, err
	}
	d := &daemon{dir: dir, bin: filepath.Join(dir, "bin"), others: groups()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	for _, b := range []struct{ module, pkg string }{
		{"daemon", "github.com/containerd/containerd/v2/cmd/containerd"},
		{"daemon", "github.com/containerd/containerd/v2/cmd/ctr"},
		{"..", "./cmd/containerd-shim-strata-v1"},
		{"../..", "./cmd/strata-init"},
	} {
		if err := build(d.bin, b.module, b.pkg); err != nil {
			return nil, err
		}
	}
	config := fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "%[1]s/c.sock"
[ttrpc]
address = "%[1]s/t.sock"
[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "64MiB"
[plugins."io.containerd.snapshotter.v1.blockfile"]
scratch_file = "%[1]s/blank"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %[2]q
[plugins."io.containerd.cri.v1.images".registry]
config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["%[1]s/bin"]
conf_dir = "%[1]s/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata]
runtime_type = "io.containerd.strata.v1"
privileged_without_host_devices = true
pod_annotations = ["io.stratavm.*"]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata-shim]
runtime_type = "io.containerd.strata.v1"
sandboxer = "shim"
disable_pause_image_pull = true
privileged_without_host_devices = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata-misspelt]
runtime_type = "io.containerd.strata.v1"
options = {memroy = 300}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata-shim-misspelt]
runtime_type = "io.containerd.strata.v1"
sandboxer = "shim"
options = {memroy = 300}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`, dir, pauseImage)
	if out, err := exec.Command("mkfs.ext4", "-q", dir+"/blank", "64M").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w\n%s", err, out)
	}
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		return nil, err
	}
	if err := d.launch(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(dir+"/image.tar", image, 0o600); err != nil {
		return nil, err
	}
	if r := d.ctr(nil, "image", "import", "--local", dir+"/image.tar"); r.code != 0 {
		return nil, fmt.Errorf("import the image: %s", r.stderr)
	}
	return d, nil
}

// launch starts containerd, which may have run before.
func (d *daemon) launch() error {
	log, err := os.OpenFile(d.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.bin+"/containerd", "-c", d.dir+"/config.toml")
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, log, log
	cmd.Env = append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"), "STRATA_SHIM_STATE="+d.vms())
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd = cmd
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if d.ctr(nil, "version").code == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd does not answer: %s", d.tail())
		}
	}
}

// build builds programs of a module into a folder.
func build(dir, module string, pkgs ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-C", module, "-o", dir + "/"}, pkgs...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkgs, err, out)
	}
	return nil
}

// stop ends containerd and removes everything.
func (d *daemon) stop() error {
	var err error
	if d.cmd != nil {
		if err = d.cmd.Process.Signal(syscall.SIGTERM); err == nil {
			err = d.cmd.Wait()
		}
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// vms is where the shim keeps its VMs.
func (d *daemon) vms() string { return d.dir + "/vms" }

// result is what a program did.
type result struct {
	stdout, stderr string
	code           int
}

// command is a call of ctr.
func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.bin+"/ctr", append([]string{"--address", d.dir + "/c.sock"}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	return cmd
}

// ctr calls ctr.
func (d *daemon) ctr(stdin io.Reader, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := d.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ctx.Err() != nil {
		r.code, r.stderr = -1, fmt.Sprint(err, ctx.Err(), r.stderr)
	}
	return r
}

// must is ctr, and has to end with a code.
func (d *daemon) must(t *testing.T, code int, args ...string) result {
	t.Helper()
	r := d.ctr(nil, args...)
	if r.code != code {
		t.Fatalf("ctr %q: exit code %d, want %d\n%s%s\n%s", args, r.code, code, r.stdout, r.stderr, d.tail())
	}
	return r
}

// run is ctr run with the runtime.
func run(args ...string) []string {
	return append([]string{"run", "--runtime", "io.containerd.strata.v1"}, args...)
}

// tail is the end of the log of containerd and the shims.
func (d *daemon) tail() string {
	b, _ := os.ReadFile(d.dir + "/log")
	return string(b[max(0, len(b)-64<<10):]) // with the stacks of a guest's agent
}

// clean fails when something is left of containers: a process, a mount, a folder, a control group.
func (d *daemon) clean(t *testing.T) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if left = d.left(t); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("left behind: %q\n%s", left, d.tail())
}

func (d *daemon) left(t *testing.T) (left []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, d.dir) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{d.vms() + "/*", d.dir + "/state/io.containerd.runtime.v2.task/*/*",
		d.dir + "/state/io.containerd.sandbox.controller.v1.shim/*/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, names...)
	}
	for pid, name := range d.processes(t) {
		left = append(left, fmt.Sprintf("process %d %s", pid, name))
	}
	for _, name := range groups() {
		if !slices.Contains(d.others, name) {
			left = append(left, "control group "+name)
		}
	}
	for _, pid := range d.orphans(t) {
		left = append(left, fmt.Sprintf("virtiofsd %d", pid))
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if file, _ := os.ReadFile(name); strings.HasPrefix(string(file), d.dir) {
			left = append(left, "loop device of "+strings.TrimSpace(string(file)))
		}
	}
	return left
}

// socket is where the shim of a container listens: containerd says in which folder, its package how it is called.
func (d *daemon) socket(id string) string {
	return fmt.Sprintf("/run/containerd/s/%x", sha256.Sum256([]byte(d.dir+"/c.sock/default/"+id)))
}

// shims lists the processes of the shims that run.
func (d *daemon) shims(t *testing.T) (pids []int) {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range exes {
		if to, _ := os.Readlink(exe); to == d.bin+"/containerd-shim-strata-v1" {
			var pid int
			fmt.Sscanf(exe, "/proc/%d/exe", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// events notes the events of containerd until the test ends.
func (d *daemon) events(t *testing.T) func(id string) []string {
	t.Helper()
	var mu sync.Mutex
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	cmd := d.command(ctx, "events")
	cmd.Stdout = writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(b)
	})
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	return func(id string) (of []string) {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(out.String()) {
			i := strings.Index(line, " /tasks/")
			if i < 0 {
				continue
			}
			topic, body, _ := strings.Cut(line[i+1:], " ")
			var e struct {
				Container string `json:"container_id"`
				ID        string `json:"id"`
				Exec      string `json:"exec_id"`
				Code      int    `json:"exit_status"`
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Errorf("event %s: %v", line, err)
			}
			if e.Container != id {
				continue
			}
			switch topic {
			case "/tasks/exit":
				topic += fmt.Sprintf(" %s %d", e.ID, e.Code)
			case "/tasks/delete":
				topic += fmt.Sprintf(" %d", e.Code)
			}
			of = append(of, strings.TrimSpace(topic+" "+e.Exec))
		}
		return of
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
