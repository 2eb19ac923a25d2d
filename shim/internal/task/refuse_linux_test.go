package task

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// refuses creates a container, which has to be an error that says all of words, before anything is started.
func refuses(t *testing.T, s *specs.Spec, change func(*taskapi.CreateTaskRequest), words ...string) {
	t.Helper()
	f := newFixture(t)
	r := bundle(t, s)
	if change != nil {
		change(r)
	}
	_, err := f.Create(t.Context(), r)
	if err == nil || f.vms > 0 || len(f.containers) > 0 || is(err, errdefs.ErrNotImplemented) {
		t.Errorf("want an error with %q before a VM is started: %v; %d VMs were", words, err, f.vms)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v: it does not say %q", err, w)
		}
	}
	if got := f.published(); len(got) > 0 {
		t.Errorf("events %v of what was refused", got)
	}
}

// TestHostRefused: what a VM cannot have, or is not to have, of its host names what to do.
func TestHostRefused(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	link := func(name, to string) string {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	without := func(kind specs.LinuxNamespaceType) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		}
	}
	bind := func(source string, options ...string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: source, Options: append(options, "rbind")}}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		words  []string
	}{
		{"a misspelt annotation", func(s *specs.Spec) { s.Annotations = map[string]string{"io.stratavm.memroy": "1"} },
			[]string{`"io.stratavm.memroy" is not known`, memoryAnnotation, cpusAnnotation}},
		{"hostNetwork", without(specs.NetworkNamespace), []string{"host's network", "leave out hostNetwork"}},
		{"hostPID", without(specs.PIDNamespace), []string{"host's processes", "leave out hostPID"}},
		{"hostIPC", without(specs.IPCNamespace), []string{"host's IPC", "leave out hostIPC"}},
		{"the host's names", without(specs.UTSNamespace), []string{"uts is missing"}},
		{"mapped ids", func(s *specs.Spec) {
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
		}, []string{"linux.uidMappings"}},
		{"a privileged pod's devices", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}}
		}, []string{"/dev/kmsg", "privileged_without_host_devices"}},
		{"a profile", func(s *specs.Spec) { s.Process.ApparmorProfile = "p" }, []string{"process.apparmorProfile"}},
		{"rshared", bind(dir, "rshared"), []string{`"rshared"`, "rprivate", "mountPropagation"}},
		{"rslave", bind(dir, "rslave"), []string{`"rslave"`, "rprivate"}},
		{"a root that is shared", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" },
			[]string{"linux.rootfsPropagation"}},
		{"/proc", bind("/proc"), []string{"mounts[0]: /x", "/proc, where the kernel shows this host", "hostPath"}},
		{"in /sys", bind("/sys/fs"), []string{"is in /sys"}},
		{"/dev", bind("/dev/"), []string{"in /dev"}},
		{"a device", bind("/dev/null"), []string{"in /dev"}},
		{"what holds it", bind("/"), []string{"/ is, holds or is in /dev"}},
		{"a link to it", bind(link("p", "/proc/sys")), []string{"/proc/sys is"}},
		{"a link in the way", bind(link("q", "/") + "/sys"), []string{"/sys is"}},
		{"a way through it", bind("/proc/self/root" + dir), []string{"in /proc"}},
		{"a socket", bind(socket), []string{socket, "no folder or regular file"}},
		{"nothing", bind(dir + "/none"), []string{dir + "/none", "no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := spec()
			tt.change(s)
			refuses(t, s, nil, tt.words...)
		})
	}
	t.Run("a root", func(t *testing.T) {
		s := spec()
		s.Root.Path = "/"
		refuses(t, s, nil, "root file system", "/ is, holds or is in /dev")
	})
}

// TestNamespaceFile: a file that is a namespace of the host, as in /run/netns, is refused, and a folder with one.
func TestNamespaceFile(t *testing.T) {
	treetest.NeedRoot(t, "to mount a namespace")
	dir := t.TempDir()
	file := filepath.Join(dir, "web")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	for _, source := range []string{file, dir} {
		s := spec()
		s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: source, Options: []string{"rbind"}}}
		refuses(t, s, nil, file+", where the kernel shows this host", "hostPath")
	}
}

// TestApart: what only looks like it is no reason to refuse a mount.
func TestApart(t *testing.T) {
	for path, folder := range map[string]string{"/device": "/dev", "/": "/dev", "/proc": "/proc/sys"} {
		if within(path, folder) {
			t.Errorf("%s is said to be in %s", path, folder)
		}
	}
	if !within("/dev", "/") || !within("/dev/shm", "/dev") || !within("/dev", "/dev") {
		t.Error("what is in a folder is not said to be")
	}
	dir, err := os.MkdirTemp(sharedMemory, "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, path := range []string{dir, t.TempDir()} {
		if err := checkFolder(path); err != nil {
			t.Error(err)
		}
	}
	// A file system of the kernel in another place.
	if err := checkSource("/etc", []string{"/etc/chroot/proc"}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("/etc with a /proc in it: %v", err)
	}
}

// TestRequestRefused: what containerd asks for and cannot have.
func TestRequestRefused(t *testing.T) {
	type request = taskapi.CreateTaskRequest
	for name, tt := range map[string]struct {
		change func(*request)
		words  []string
	}{
		"options": {func(r *request) { r.Options = &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{1}} },
			[]string{"runtime options"}},
		"options of runc": {func(r *request) { r.Options = &anypb.Any{TypeUrl: "runc.v1.Options"} },
			[]string{`"runc.v1.Options"`, "remove"}},
		"options without a type": {func(r *request) { r.Options = &anypb.Any{Value: []byte{1}} }, []string{"remove"}},
		"a snapshotter": {func(r *request) { r.Rootfs = []*types.Mount{{Type: "fuse.stargz", Source: "x"}} },
			[]string{`"fuse.stargz"`, "another snapshotter"}},
		"a bundle that is not there": {func(r *request) { r.Bundle += "/gone" }, []string{"config.json", "no such file"}},
		"no path of a bundle":        {func(r *request) { r.Bundle = "b" }, []string{"absolute"}},
		"a FIFO that is not there":   {func(r *request) { r.Stdin += "gone" }, []string{"standard input"}},
	} {
		t.Run(name, func(t *testing.T) { refuses(t, spec(), tt.change, tt.words...) })
	}
}

// TestSandboxTwice: a second sandbox of one id is refused, and the first one stays.
func TestSandboxTwice(t *testing.T) {
	f := newFixture(t)
	for i, want := range []error{nil, errdefs.ErrAlreadyExists} {
		if _, err := f.Create(t.Context(), bundle(t, podSpec("sandbox"))); want != nil && !is(err, want) || want == nil &&
			err != nil {
			t.Errorf("sandbox %d: %v, want %v", i, err, want)
		}
	}
	if err := f.member(nil); err != nil || f.vms != 1 || f.m.ends != 0 {
		t.Errorf("a member: %v; %d VMs were started, %d ended", err, f.vms, f.m.ends)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBundleGone: a container whose bundle disappears ends and is deleted as any other, with its exit code.
func TestBundleGone(t *testing.T) {
	leaktest.Check(t)
	f := running(t)
	if err := os.RemoveAll(f.containers["a"].bundle); err != nil {
		t.Fatal(err)
	}
	f.m.program(0).exit(3, nil)
	if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil || w.ExitStatus != 3 {
		t.Errorf("wait: %v, %v", w, err)
	}
	if d, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil || d.ExitStatus != 3 || f.m.ends != 1 {
		t.Errorf("delete: %v, %v; the VM has ended %d times", d, err, f.m.ends)
	}
}
