package manager

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/ttrpc"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/uvm"
)

// bootstrap writes into a bundle how its shim is reached.
func bootstrap(t *testing.T, bundle, address string) {
	t.Helper()
	b, err := json.Marshal(&bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address})
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, bootstrapFile), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestStop takes away the socket of a shim that was killed, and does so again when nothing is there any more.
func TestStop(t *testing.T) {
	bundle, sockets := t.TempDir(), t.TempDir()
	t.Setenv(pod.StateEnv, t.TempDir())
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	ctx = context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: bundle})
	stop := func() {
		t.Helper()
		if s, err := (Manager{}).Stop(ctx, "a"); err != nil || s.ExitStatus != 137 {
			t.Errorf("stop: %+v, %v", s, err)
		}
	}
	stop() // before a shim was started
	name := filepath.Join(sockets, "s")
	socket, err := listen("unix://" + name)
	if err != nil {
		t.Fatal(err)
	}
	socket.SetUnlinkOnClose(false)
	socket.Close()
	bootstrap(t, bundle, "unix://"+name)
	for range 2 {
		stop()
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	}
}

// TestStopCgroup removes the control group that was made for a task or its pod, and no other that its document names.
func TestStopCgroup(t *testing.T) {
	treetest.NeedRoot(t, "to make a control group")
	t.Setenv(pod.StateEnv, t.TempDir())
	name := fmt.Sprintf("/strata-test-%d", os.Getpid())
	root := "/sys/fs/cgroup"
	if cgroups.Mode() != cgroups.Unified {
		root += "/pids"
	}
	if err := os.Mkdir(root+name, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(root + name)
	for _, tt := range []struct {
		id   string
		made bool
	}{{"member", false}, {"sandbox", false}, {"member", true}} {
		bundle := t.TempDir()
		if tt.made {
			if err := os.WriteFile(bundle+"/strata-cgroup", []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		document := fmt.Sprintf(`{"annotations": {"io.kubernetes.cri.sandbox-id": "sandbox"},
			"linux": {"cgroupsPath": %q}}`, name)
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(document), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx := namespaces.WithNamespace(context.Background(), "ns")
		ctx = context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: bundle})
		if _, err := (Manager{}).Stop(ctx, tt.id); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(root + name); (err == nil) == tt.made {
			t.Errorf("after the end of %s, for which it was made (%t): %v", tt.id, tt.made, err)
		}
	}
}

// TestPod: a container of a pod gets the shim of its sandbox, and its end leaves the shim that others have, and their
// VM.
func TestPod(t *testing.T) {
	bundle, state, sockets := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv(pod.StateEnv, state)
	t.Chdir(bundle)
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	document := `{"annotations": {"io.kubernetes.cri.sandbox-id": "sandbox", "io.kubernetes.cri.container-type": "container"}}`
	if err := os.WriteFile("config.json", []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	address, err := shim.CreateSocketAddress(ctx, sockets, "/c.sock", "sandbox", false)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, socket)
	how, err := Manager{}.Start(ctx, &bootapi.BootstrapParams{InstanceID: "member", SocketDir: &sockets,
		ContainerdGrpcAddress: "/c.sock"})
	if err != nil || how.Address != address || how.Version != 3 {
		t.Fatalf("start: %v, %v; want %s", how, err, address)
	}
	bootstrap(t, bundle, address)
	vm := filepath.Join(state, "ns", "vms", "sandbox")
	if err := os.MkdirAll(vm, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := (Manager{}).Stop(ctx, "member"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(vm); err != nil || !shim.CanConnect(address) {
		t.Errorf("the VM of the pod, or its shim, is gone: %v", err)
	}
	socket.Close() // the shim was killed
	if _, err := (Manager{}).Stop(ctx, "member"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(vm); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the VM of a pod whose shim was killed is left: %v", err)
	}
}

// tasks is a shim that answers who asks whether it lives.
type tasks struct{ taskapi.TTRPCTaskService }

func (tasks) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{}, nil
}

// serve answers at a socket until the test ends.
func serve(t *testing.T, socket net.Listener) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	taskapi.RegisterTTRPCTaskService(server, tasks{})
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(context.Background(), socket) }()
}

// holdEnv names the file that this program locks when it is started again.
const holdEnv = "STRATA_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		f, err := lockfile.Wait(context.Background(), path, false)
		if err == nil {
			_, err = fmt.Fprintln(f, os.Getpid())
		}
		fmt.Println(err)
		select {}
	}
	os.Exit(m.Run())
}

// TestStopped: a shim that was stopped, so that it listens and does not answer, is ended with the VM that it has.
func TestStopped(t *testing.T) {
	bundle, state, sockets := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv(pod.StateEnv, state)
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	ctx = context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: bundle})
	document := `{"annotations": {"io.kubernetes.cri.sandbox-id": "sandbox", "io.kubernetes.cri.container-type": "container"}}`
	if err := os.WriteFile(bundle+"/config.json", []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := listen("unix://" + sockets + "/s") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	bootstrap(t, bundle, "unix://"+sockets+"/s")
	vm := filepath.Join(state, "ns", "vms", "sandbox")
	if err := os.MkdirAll(vm, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.Command(self)
	holder.Env = append(os.Environ(), holdEnv+"="+vm+"/lock")
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = holder.Process.Kill(), holder.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := holder.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if s, err := (Manager{}).Stop(ctx, "member"); err != nil || s.ExitStatus != 137 {
		t.Errorf("stop: %+v, %v", s, err)
	}
	if _, err := os.Lstat(vm); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the VM is left: %v", err)
	}
	err = holder.Wait()
	if status, ok := holder.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("the shim: %v", err)
	}
}

// TestBundleGone: what is left of a task is taken away though its bundle has disappeared.
func TestBundleGone(t *testing.T) {
	state := t.TempDir()
	t.Setenv(pod.StateEnv, state)
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	ctx = context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: t.TempDir() + "/gone"})
	vm := filepath.Join(state, "ns", "vms", "a")
	if err := os.MkdirAll(vm, 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := (Manager{}).Stop(ctx, "a"); err != nil || s.ExitStatus != 137 {
		t.Errorf("stop: %+v, %v", s, err)
	}
	if _, err := os.Lstat(vm); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the VM is left: %v", err)
	}
}

// TestInfo: containerd 2.3 reads from an annotation which mounts the shim takes as they are.
func TestInfo(t *testing.T) {
	info, err := Manager{Version: "v"}.Info(t.Context(), nil)
	want := "erofs,ext4,loop,format/*,mkdir/*"
	if err != nil || info.Name != "io.containerd.strata.v1" || info.Version.Version != "v" ||
		info.Annotations["containerd.io/runtime-allow-mounts"] != want {
		t.Errorf("%+v, %v, want the mounts %s", info, err, want)
	}
}

// TestRemoveFrom: what takes longer than the lock of a VM is waited for, and its holder is only ended where it has the
// lock.
func TestRemoveFrom(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first error
		kills int
	}{{"process", context.DeadlineExceeded, 0}, {"lock", uvm.ErrLocked, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			tries, kills := 0, 0
			err := removeFrom(t.Context(), func(ctx context.Context) error {
				if tries++; tries > 1 {
					return ctx.Err()
				}
				<-ctx.Done()
				return tt.first
			}, func() error { kills++; return nil })
			if err != nil || tries != 2 || kills != tt.kills {
				t.Errorf("%v after %d tries, with %d holders killed", err, tries, kills)
			}
		})
	}
}

// TestNoHolder: a lock that nobody is found to have is nobody's.
func TestNoHolder(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "\n", fmt.Sprintln(gone.Process.Pid)} {
		dir := t.TempDir()
		if err := killHolder(dir); err != nil {
			t.Errorf("without a lock: %v", err)
		}
		if err := os.WriteFile(dir+"/lock", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := killHolder(dir); err != nil {
			t.Errorf("lock %q: %v", text, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/lock", fmt.Append(nil, os.Getppid()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := killHolder(dir); err == nil {
		t.Error("another program than a shim was killed")
	}
}
