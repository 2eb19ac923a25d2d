package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	ctrdevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/shim/internal/events"
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/task"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// machine is a VM in memory whose programs run until it ends.
type machine struct {
	task.Machine
	fake  *vmmtest.Fake
	vm    *uvm.UtilityVM
	ended chan struct{}
	once  sync.Once
	execs []vmm.ProcessSpec
}

func (m *machine) PID() int                              { return 4711 }
func (m *machine) Connect(context.Context, string) error { return nil }

func (m *machine) Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error) {
	r.VM = m.vm
	return layers.Mount(ctx, r)
}

func (m *machine) Exec(_ context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	m.execs = append(m.execs, spec)
	return program{m: m}, nil
}

func (m *machine) Watch(ctx context.Context, _ *layers.Mounted) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (m *machine) End(context.Context) error {
	m.once.Do(func() {
		m.fake.Kill()
		close(m.ended)
	})
	return nil
}

type program struct {
	vmm.Process
	m *machine
}

func (p program) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.m.ended:
		return 0, vmm.ErrGone
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (p program) Close() error { return nil }

// fixture is a service with a machine for its pod.
type fixture struct {
	*Service
	m     *machine
	sizes pod.Options
	over  bool // the shim has ended
}

type nobody struct{}

func (nobody) Publish(context.Context, string, ctrdevents.Event) error { return nil }

func newFixture(t *testing.T) *fixture {
	t.Helper()
	treetest.NeedRoot(t, "to mount the files of a pod")
	f := &fixture{m: &machine{fake: vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), ended: make(chan struct{})}}
	vm, err := uvm.Open(t.Context(), t.TempDir(), func(context.Context) (vmm.Machine, error) { return f.m.fake, nil },
		uvm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	f.m.vm = vm
	log := slog.New(slog.DiscardHandler)
	queue := events.New(t.Context(), nobody{}, log)
	t.Cleanup(func() { _ = queue.Close(context.Background()) })
	tasks := task.New(task.Config{Namespace: "ns", Events: queue, Logger: log, End: func() {},
		StartVM: func(_ context.Context, o pod.Options) (task.Machine, error) { f.sizes = o; return f.m, nil }})
	f.Service = New(tasks, func() { f.over = true })
	t.Cleanup(func() { _ = tasks.Close(context.Background()) })
	return f
}

// class is the class of an error as containerd sees it.
func class(err error, is func(error) bool) bool { return is(errgrpc.ToNative(err)) }

// TestOptions: what containerd said when it started the shim counts for the pod, and is refused before anything starts.
func TestOptions(t *testing.T) {
	f := newFixture(t)
	r := request(t, nil)
	say := func(text string) {
		t.Helper()
		params := &bootapi.BootstrapParams{}
		err := params.AddExtension(&runtimeoptions.Options{ConfigBody: []byte(text)})
		if err == nil {
			err = options.Keep(r.BundlePath, params)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	say("memroy = 300")
	if _, err := f.CreateSandbox(t.Context(), r); !class(err, errdefs.IsInvalidArgument) ||
		!strings.Contains(err.Error(), "memroy") {
		t.Errorf("%v, want an error that names the option", err)
	}
	say("memory = 300")
	if _, err := f.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, err := f.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: r.SandboxID})
	if err != nil || f.sizes.MemoryMiB != 300 {
		t.Errorf("the VM is started by %+v, %v", f.sizes, err)
	}
	_, err = f.ShutdownSandbox(t.Context(), &sandboxapi.ShutdownSandboxRequest{SandboxID: r.SandboxID})
	if err != nil {
		t.Error(err)
	}
}

// TestSandbox leads a pod through its life.
func TestSandbox(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	ctx := t.Context()
	r := request(t, &cri.PodSandboxConfig{Hostname: "web"})
	id := r.SandboxID
	_, err := f.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
	if !class(err, errdefs.IsFailedPrecondition) {
		t.Errorf("start before create: %v", err)
	}
	if _, err := f.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id}); !class(err, errdefs.IsNotFound) {
		t.Errorf("status before create: %v", err)
	}
	if _, err := f.CreateSandbox(ctx, r); err != nil {
		t.Fatal(err)
	}
	if _, err := f.CreateSandbox(ctx, r); !class(err, errdefs.IsAlreadyExists) {
		t.Errorf("create again: %v", err)
	}
	status := func(want string) {
		t.Helper()
		s, err := f.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id})
		if err != nil || s.State != want || (want == ready) != (s.ExitedAt == nil && s.Pid == 4711) {
			t.Errorf("status: %v, %v, want %s", s, err, want)
		}
	}
	started, err := f.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
	if err != nil || started.Pid != 4711 || started.CreatedAt == nil {
		t.Fatalf("start: %v, %v", started, err)
	}
	status(ready)
	_, err = f.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
	if !class(err, errdefs.IsFailedPrecondition) {
		t.Errorf("start again: %v", err)
	}
	for name, mode := range map[string]fs.FileMode{"hosts": 0o644, "hostname": 0o644, "resolv.conf": 0o644,
		"shm": fs.ModeDir | fs.ModeSticky | 0o777} {
		if fi, err := os.Stat(r.BundlePath + "/rootfs/" + name); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if f.sizes.Namespace != "/run/netns/p" || !f.sizes.Forward || len(f.m.execs) != 1 || f.m.execs[0].Hostname != "web" {
		t.Errorf("the VM is started by %+v, and in it %+v", f.sizes, f.m.execs)
	}
	if p, err := f.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: id}); err != nil || p.Platform.OS != "linux" {
		t.Errorf("platform: %v, %v", p, err)
	}
	if _, err := f.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: id}); err != nil {
		t.Errorf("ping: %v", err)
	}
	_, err = f.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: id})
	if !class(err, errdefs.IsNotImplemented) {
		t.Errorf("update: %v", err)
	}
	waited := make(chan *sandboxapi.WaitSandboxResponse, 1)
	go func() {
		w, _ := f.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: id})
		waited <- w
	}()
	for range 2 {
		if _, err := f.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: id}); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if w := <-waited; w.GetExitStatus() != 137 || w.GetExitedAt() == nil {
		t.Errorf("wait: %v", w)
	}
	status(notReady)
	if names, err := os.ReadDir(r.BundlePath + "/rootfs"); err != nil || len(names) > 0 {
		t.Errorf("the files are still there: %v, %v", names, err)
	}
	_, err = f.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "other"})
	if !class(err, errdefs.IsNotFound) || f.over {
		t.Errorf("shutdown of another one: %v, the shim has ended: %t", err, f.over)
	}
	if _, err := f.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: id}); err != nil || !f.over {
		t.Errorf("shutdown: %v, the shim has ended: %t", err, f.over)
	}
}

// TestDies: a pod whose VM dies is not ready any more.
func TestDies(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	r := request(t, nil)
	if _, err := f.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := f.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		t.Fatal(err)
	}
	if err := f.m.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	w, err := f.WaitSandbox(t.Context(), &sandboxapi.WaitSandboxRequest{SandboxID: r.SandboxID})
	if err != nil || w.ExitStatus != 137 {
		t.Errorf("wait: %v, %v", w, err)
	}
	s, err := f.SandboxStatus(t.Context(), &sandboxapi.SandboxStatusRequest{SandboxID: r.SandboxID})
	if err != nil || s.State != notReady {
		t.Errorf("status: %v, %v", s, err)
	}
	if _, err := f.ShutdownSandbox(t.Context(), &sandboxapi.ShutdownSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// asked is a context that says when somebody begins to wait for its end.
type asked struct {
	context.Context
	once    *sync.Once
	waiting chan struct{}
}

func (a asked) Done() <-chan struct{} {
	a.once.Do(func() { close(a.waiting) })
	return a.Context.Done()
}

// TestWaitBeforeStart: who waits for a pod before it is started is told of its end.
func TestWaitBeforeStart(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	r := request(t, nil)
	if _, err := f.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx := asked{limited, new(sync.Once), make(chan struct{})}
	code := make(chan uint32, 1)
	go func() {
		w, err := f.wait(ctx, r.SandboxID)
		if err != nil {
			t.Error(err)
		}
		code <- w.GetExitStatus()
	}()
	<-ctx.waiting
	if _, err := f.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.StopSandbox(t.Context(), &sandboxapi.StopSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		t.Error(err)
	}
	if got := <-code; got != 137 {
		t.Errorf("the pod ends with %d", got)
	}
}

// TestNotStarted: a pod that was only created ends as any other, and a shim without one too.
func TestNotStarted(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	r := request(t, nil)
	if _, err := f.ShutdownSandbox(t.Context(), &sandboxapi.ShutdownSandboxRequest{SandboxID: "x"}); err != nil || !f.over {
		t.Errorf("shutdown without a pod: %v, %t", err, f.over)
	}
	if _, err := f.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := f.StopSandbox(t.Context(), &sandboxapi.StopSandboxRequest{SandboxID: r.SandboxID}); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if _, err := f.WaitSandbox(t.Context(), &sandboxapi.WaitSandboxRequest{SandboxID: r.SandboxID}); err != nil {
		t.Errorf("wait: %v", err)
	}
	_, err := f.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: r.SandboxID})
	if !class(err, errdefs.IsFailedPrecondition) {
		t.Errorf("start of what is stopped: %v", err)
	}
}

// TestMetrics are those of the control group that the pod names.
func TestMetrics(t *testing.T) {
	f := newFixture(t)
	parent := fmt.Sprintf("/strata-test-%d", os.Getpid())
	r := request(t, &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{CgroupParent: parent}})
	if _, err := f.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	metrics := func() (*sandboxapi.SandboxMetricsResponse, error) {
		return f.SandboxMetrics(t.Context(), &sandboxapi.SandboxMetricsRequest{SandboxID: r.SandboxID})
	}
	if m, err := metrics(); err == nil {
		t.Errorf("without the group: %v", m)
	}
	root := "/sys/fs/cgroup"
	if cgroups.Mode() != cgroups.Unified {
		root += "/pids"
	}
	for _, dir := range []string{root + parent, root + parent + "/" + r.SandboxID} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
	}
	if m, err := metrics(); err != nil || m.Metrics.ID != r.SandboxID || len(m.Metrics.Data.GetValue()) == 0 {
		t.Errorf("%v, %v", m, err)
	}
}
