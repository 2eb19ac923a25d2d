package sandbox

import (
	"maps"
	"slices"
	"strings"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stratavm/strata/shim/internal/task"
)

// request asks for a pod.
func request(t *testing.T, c *cri.PodSandboxConfig) *sandboxapi.CreateSandboxRequest {
	t.Helper()
	r := &sandboxapi.CreateSandboxRequest{SandboxID: "0123456789abcdef", BundlePath: t.TempDir(),
		NetnsPath: "/run/netns/p"}
	if c != nil {
		o, err := typeurl.MarshalAnyToProto(c)
		if err != nil {
			t.Fatal(err)
		}
		r.Options = o
	}
	return r
}

// TestPlan: what CRI says of a pod is in the document of what holds it, and in its files.
func TestPlan(t *testing.T) {
	p, err := newPlan(request(t, &cri.PodSandboxConfig{Hostname: "web", Annotations: map[string]string{
		"io.stratavm.cpus": "3", "org.stratavm.etc": "x", "other": "y"}, DnsConfig: &cri.DNSConfig{
		Servers: []string{"192.0.2.53"}, Searches: []string{"example.com"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1",
			Sysctls:   map[string]string{"kernel.shm_rmid_forced": "1"},
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 5, CpuQuota: 6, CpuPeriod: 7}}}))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"io.kubernetes.cri.sandbox-id": "0123456789abcdef",
		"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-memory": "5",
		"io.kubernetes.cri.sandbox-cpu-quota": "6", "io.kubernetes.cri.sandbox-cpu-period": "7", "org.stratavm.init": "true",
		"io.stratavm.cpus": "3"}
	if !maps.Equal(p.doc.Annotations, want) {
		t.Errorf("the annotations are %v, want %v", p.doc.Annotations, want)
	}
	if p.doc.Hostname != "web" || p.doc.Linux.CgroupsPath != "/kubepods/pod1/0123456789abcdef" ||
		p.doc.Linux.Sysctl["kernel.shm_rmid_forced"] != "1" || !slices.Equal(p.doc.Process.Args, task.HolderArgs) {
		t.Errorf("the document is %+v, %+v", p.doc, p.doc.Linux)
	}
	if !slices.Contains(p.doc.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/p"}) {
		t.Errorf("the namespaces are %v", p.doc.Linux.Namespaces)
	}
	if got := p.files["/etc/resolv.conf"]; got != "search example.com\nnameserver 192.0.2.53\noptions ndots:5\n" {
		t.Errorf("resolv.conf is %q", got)
	}
	if p.files["/etc/hostname"] != "web\n" || !strings.Contains(p.files["/etc/hosts"], "127.0.0.1\tweb\n") {
		t.Errorf("the files are %q", p.files)
	}
}

// TestPlanAlone: nothing has to be said of a pod.
func TestPlanAlone(t *testing.T) {
	r := request(t, nil)
	r.NetnsPath = ""
	p, err := newPlan(r)
	if err != nil || p.doc.Hostname != "0123456789ab" || p.doc.Linux.CgroupsPath != "" {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestPlanRefused: what a VM cannot give a pod is named.
func TestPlanRefused(t *testing.T) {
	options := func(o *cri.NamespaceOption) *cri.PodSandboxConfig {
		return &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: o}}}
	}
	for want, c := range map[string]*cri.PodSandboxConfig{
		"the network namespace of the host": options(&cri.NamespaceOption{Network: cri.NamespaceMode_NODE}),
		"the PID namespace of the host":     options(&cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}),
		"the IPC namespace of the host":     options(&cri.NamespaceOption{Ipc: cri.NamespaceMode_NODE}),
		"a user namespace": options(&cri.NamespaceOption{
			UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD}}),
	} {
		if _, err := newPlan(request(t, c)); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q: %v", want, err)
		}
	}
	r := request(t, nil)
	r.Options, _ = typeurl.MarshalAnyToProto(&cri.ContainerConfig{})
	if _, err := newPlan(r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "ContainerConfig") {
		t.Errorf("the configuration of something else: %v", err)
	}
	_, err := newPlan(request(t, &cri.PodSandboxConfig{DnsConfig: &cri.DNSConfig{Servers: []string{"x\ny"}}}))
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name server that is none: %v", err)
	}
}

func TestCgroupsPath(t *testing.T) {
	for parent, want := range map[string]string{"": "", "/kubepods/p": "/kubepods/p/id",
		"/kubepods.slice/kubepods-p.slice": "kubepods-p.slice:cri-containerd:id"} {
		if got := cgroupsPath(parent, "id"); got != want {
			t.Errorf("%q: %q, want %q", parent, got, want)
		}
	}
}
