package sandbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/rootfs"
	"github.com/stratavm/strata/shim/internal/task"
)

// memoryMiB is the maximum size of a pod's files and the shared memory of its containers in host memory.
const memoryMiB = 64

// resolvConf is the host's, for pods without a DNS configuration.
const resolvConf = "/etc/resolv.conf"

// nameLength is the length of the prefix of a pod's id that is its host name if the pod names none.
const nameLength = 12

// plan is a pod to start: the spec of its holder container, and its files.
type plan struct {
	doc     *specs.Spec
	files   map[string]string // contents by their path in the containers
	options *anypb.Any        // of the runtime
}

// newPlan makes a plan from a request, without side effects. A field that cannot be honoured is an error that names it.
func newPlan(r *sandboxapi.CreateSandboxRequest) (*plan, error) {
	c := &cri.PodSandboxConfig{}
	if r.GetOptions().GetTypeUrl() != "" { // else a pod with defaults
		if err := typeurl.UnmarshalToByTypeURL(r.Options.GetTypeUrl(), r.Options.GetValue(), c); err != nil {
			return nil, fmt.Errorf("the configuration of the pod, of type %s: %w: %w", r.Options.GetTypeUrl(),
				errdefs.ErrInvalidArgument, err)
		}
	}
	if len(r.GetRootfs()) > 0 {
		return nil, fmt.Errorf("a root file system for the pod itself: %w", errdefs.ErrNotImplemented)
	}
	options := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, n := range []struct {
		kind, inKubernetes string
		mode               cri.NamespaceMode
	}{{"network", "hostNetwork", options.GetNetwork()}, {"PID", "hostPID", options.GetPid()},
		{"IPC", "hostIPC", options.GetIpc()}} {
		if n.mode == cri.NamespaceMode_NODE {
			return nil, fmt.Errorf("the %s namespace of the host, which a VM has not: leave out %s of the pod: %w", n.kind,
				n.inKubernetes, errdefs.ErrNotImplemented)
		}
	}
	if options.GetUsernsOptions().GetMode() == cri.NamespaceMode_POD && options.GetUsernsOptions() != nil {
		return nil, fmt.Errorf("a user namespace for the pod: %w", errdefs.ErrNotImplemented)
	}
	host := cmp.Or(c.GetHostname(), r.GetSandboxID()[:min(nameLength, len(r.GetSandboxID()))])
	doc, err := strata.ContainerSpec(image.Config{}, strata.SpecOptions{Args: task.HolderArgs, Init: true, Hostname: host,
		CapDrop: []string{"ALL"}, NoNewPrivileges: true, Sysctls: c.GetLinux().GetSysctls()})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	delete(doc.Annotations, ocispec.EtcAnnotation)
	for name, value := range c.GetAnnotations() {
		if strings.HasPrefix(name, task.AnnotationPrefix) {
			doc.Annotations[name] = value
		}
	}
	for i := range doc.Linux.Namespaces {
		if doc.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			doc.Linux.Namespaces[i].Path = r.GetNetnsPath()
		}
	}
	doc.Linux.CgroupsPath = cgroupsPath(c.GetLinux().GetCgroupParent(), r.GetSandboxID())
	limits := c.GetLinux().GetResources()
	pod.Annotate(doc.Annotations, r.GetSandboxID(), limits.GetMemoryLimitInBytes(), limits.GetCpuQuota(),
		limits.GetCpuPeriod())
	p := &plan{doc: doc, files: map[string]string{"/etc/hostname": host + "\n"}}
	return p, p.network(c, host)
}

// network adds the pod's /etc/hosts and /etc/resolv.conf.
func (p *plan) network(c *cri.PodSandboxConfig, host string) error {
	etc := ocispec.Etc{}
	var machine []byte
	if dns := c.GetDnsConfig(); dns != nil {
		etc.Nameservers, etc.Search, etc.Options = dns.GetServers(), dns.GetSearches(), dns.GetOptions()
	} else if b, err := regfile.ReadState(resolvConf); err == nil { // the host may have none
		machine = b
	}
	if err := etc.Check(); err != nil {
		return fmt.Errorf("the pod's DNS: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	p.files["/etc/hosts"] = etc.HostsFile(host, "")
	p.files["/etc/resolv.conf"] = etc.ResolverFile(machine, false)
	return nil
}

// cgroupsPath returns a pod's linux.cgroupsPath, below the parent; empty if there is no parent.
func cgroupsPath(parent, id string) string {
	switch base := path.Base(parent); {
	case parent == "":
		return ""
	case strings.HasSuffix(base, ".slice"): // systemd's
		return strings.Join([]string{base, "cri-containerd", id}, ":")
	}
	return path.Join(parent, id)
}

// write writes config.json into the bundle, and mounts and fills its root, a tmpfs. On error the root is not mounted.
func (p *plan) write(bundle string) (err error) {
	b, err := json.Marshal(p.doc)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600); err != nil {
		return err
	}
	root, err := rootfs.Memory(bundle, memoryMiB)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the files of the pod: %w", err), rootfs.Unmount(bundle))
		}
	}()
	for place, name := range task.PodFiles {
		file := filepath.Join(root, name)
		if text, ok := p.files[place]; ok {
			if err = os.WriteFile(file, []byte(text), 0o644); err == nil {
				err = os.Chmod(file, 0o644) // regardless of the umask
			}
		} else if err = os.Mkdir(file, 0o777); err == nil {
			err = os.Chmod(file, 0o777|os.ModeSticky)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
