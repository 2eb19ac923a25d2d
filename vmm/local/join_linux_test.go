package local_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/vmm"
)

// joining is the document of a container that has namespaces of another one.
func joining(id string, kinds ...specs.LinuxNamespaceType) *specs.Spec {
	s := ocispec.Default()
	s.Process.Args, s.Process.Cwd = []string{"/bin/busybox"}, "/"
	s.Process.Capabilities = ocispec.Capabilities(ocispec.DefaultCapabilities())
	s.Linux.Sysctl = nil
	for _, kind := range kinds {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == kind {
				s.Linux.Namespaces[i].Path = ocispec.JoinPath(id)
			}
		}
	}
	return s
}

// TestJoin: a container has namespaces of another one that runs, and nothing of it is left when it has ended.
func TestJoin(t *testing.T) {
	m := hostileRoot(t)
	spec := func(id, script string, doc *specs.Spec, out io.Writer) vmm.ProcessSpec {
		return vmm.ProcessSpec{ContainerID: id, Root: "/run/c/rootfs", First: true, Args: shell(script), Hostname: id, Spec: doc,
			Stdout: out}
	}
	const show = "cd /proc/self/ns; for n in net ipc uts pid mnt; do /bin/busybox readlink $n; done; /bin/busybox hostname"
	var second bytes.Buffer
	all := []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace}
	if _, err := m.Exec(t.Context(), spec("d", "true", joining("c", all...), &second)); err == nil ||
		!strings.Contains(err.Error(), `"c"`) {
		t.Errorf("of one that does not run: %v", err)
	}
	a, err := m.Exec(t.Context(), spec("c", "exec /bin/busybox sleep 1000", nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Exec(t.Context(), spec("d", "true", joining("c", specs.MountNamespace), &second)); err == nil {
		t.Error("the mounts of another one are joined")
	}
	b, err := m.Exec(t.Context(), spec("d", show+"; /bin/busybox sleep 1001 & /bin/busybox ps; exit 3", joining("c", all...), &second))
	if err != nil {
		t.Fatal(err)
	}
	if code, err := b.Wait(t.Context()); code != 3 || err != nil {
		t.Errorf("code %d, %v: %s", code, err, second.String())
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	first, err := inside(t, m, shell(show)...)
	if err != nil {
		t.Error(err)
	}
	s, err := m.ContainerStats(t.Context(), "c")
	if err != nil || len(s.Processes) != 1 {
		t.Errorf("in the first container: %+v, %v", s.Processes, err)
	}
	if err := a.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if _, err := a.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	one, two := strings.Split(first, "\n"), strings.Split(second.String(), "\n")
	if len(one) < 6 || len(two) < 7 || fmt.Sprint(one[:4]) != fmt.Sprint(two[:4]) || one[4] == two[4] || two[5] != "c" ||
		!strings.Contains(second.String(), "sleep 1000") {
		t.Errorf("the namespaces are %q and %q", one, two)
	}
}
