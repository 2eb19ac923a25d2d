package task

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/ocispec"
)

// AnnotationPrefix begins the annotations of this runtime.
const AnnotationPrefix = "io.stratavm."

// annotations are the known annotations of this runtime.
var annotations = []string{cpusAnnotation, memoryAnnotation}

// checkAnnotations returns an error for an unknown annotation with AnnotationPrefix.
func checkAnnotations(have map[string]string) error {
	for name := range have {
		if strings.HasPrefix(name, AnnotationPrefix) && !slices.Contains(annotations, name) {
			return fmt.Errorf("config.json: annotation %q is not known: there are %s: %w", name,
				strings.Join(annotations, " and "), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// checkNamespaces returns an error if the spec shares a network, PID or IPC namespace with the host.
func checkNamespaces(l *specs.Linux) error {
	if l == nil {
		return nil
	}
	for _, n := range []struct {
		kind               specs.LinuxNamespaceType
		what, inKubernetes string
	}{
		{specs.NetworkNamespace, "network", "hostNetwork"},
		{specs.PIDNamespace, "processes", "hostPID"},
		{specs.IPCNamespace, "IPC", "hostIPC"},
	} {
		if !slices.ContainsFunc(l.Namespaces, func(have specs.LinuxNamespace) bool { return have.Type == n.kind }) {
			return fmt.Errorf("config.json: linux.namespaces: without a %s namespace the container would have the "+
				"host's %s, which a VM has not: leave out %s of the pod: %w", n.kind, n.what, n.inKubernetes,
				errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// checkPropagation returns an error for a mount with shared or slave propagation.
func checkPropagation(mounts []specs.Mount) error {
	for i, m := range mounts {
		for _, o := range m.Options {
			if slices.Contains([]string{"shared", "rshared", "slave", "rslave"}, o) {
				return fmt.Errorf("config.json: mounts[%d]: %s: the option %q is not supported, as mounts do not "+
					"pass between the host and a VM: use rprivate (in Kubernetes: no mountPropagation): %w", i, m.Destination, o,
					errdefs.ErrNotImplemented)
			}
		}
	}
	return nil
}

// kernelDirs and kernelTypes are the directories and file system types by which the kernel exposes the host.
var (
	kernelDirs  = []string{"/dev", "/proc", "/sys"}
	kernelTypes = []string{"binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
		"efivarfs", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs"}
)

// sharedMemory is allowed although it is in one of kernelDirs: it only holds files.
const sharedMemory = "/dev/shm"

// checkSources returns an error for a bind mount whose source checkFolder refuses.
func checkSources(mounts []specs.Mount) error {
	for i, m := range mounts {
		if !ocispec.IsBind(m) {
			continue
		}
		if err := checkFolder(m.Source); err != nil {
			return fmt.Errorf("config.json: mounts[%d]: %s: source: %w", i, m.Destination, err)
		}
	}
	return nil
}

// checkFolder returns an error for a path of the host that cannot or must not be shared with a VM: one that is,
// contains or is in a kernel file system, or is neither a directory nor a regular file.
func checkFolder(path string) error {
	shown := slices.Clone(kernelDirs)
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !slices.Contains(kernelTypes, m.FSType), false
	})
	if err != nil {
		return fmt.Errorf("the mounts of the host: %w", err)
	}
	for _, m := range infos {
		shown = append(shown, m.Mountpoint)
	}
	return checkSource(filepath.Clean(path), shown)
}

func checkSource(source string, shown []string) error {
	is, err := os.Stat(source)
	if err != nil {
		return err
	}
	resolved, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	there, err := os.Lstat(resolved)
	if err != nil {
		return err
	}
	if !os.SameFile(is, there) { // a magic link of /proc into another mount namespace
		return fmt.Errorf("%s leads out of the file systems of this host: give the path itself: %w", source,
			errdefs.ErrInvalidArgument)
	}
	for _, path := range []string{source, resolved} {
		if within(path, sharedMemory) {
			continue
		}
		for _, folder := range shown {
			if within(path, folder) || within(folder, path) {
				return fmt.Errorf("%s is, holds or is in %s, where the kernel shows this host, and that is not for a VM: mount a "+
					"folder that is apart from it, or none (in Kubernetes: hostPath): %w", path, folder, errdefs.ErrNotImplemented)
			}
		}
	}
	if !is.IsDir() && !is.Mode().IsRegular() {
		return fmt.Errorf("%s is no folder or regular file (%s), which is all that a VM can be given: %w", source,
			is.Mode().Type(), errdefs.ErrNotImplemented)
	}
	return nil
}

// within reports whether a clean path equals folder or is below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}
