package procs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/network"
	"github.com/stratavm/strata/internal/ocispec"
)

// etcDir is the subdirectory of an instance with the files for the container's /etc.
const etcDir = "etc"

// maxResolver bounds what is read of the machine's resolv.conf, in bytes.
const maxResolver = 64 << 10

// etcFiles writes the container's /etc/hosts, /etc/hostname and /etc/resolv.conf into the instance's directory and adds
// bind mounts of them to its spec. It does nothing if etc is nil, and skips a file that the spec mounts itself, that
// the image links into a kernel file system, or that a read-only root does not have, so that there is no mount point.
func (i *instance) etcFiles(root rootDir, spec *specs.Spec, etc *ocispec.Etc, net network.Network) error {
	if etc == nil {
		return nil
	}
	dir := filepath.Join(i.bundle.Dir, etcDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{
		"hostname": spec.Hostname + "\n",
		"hosts":    etc.HostsFile(spec.Hostname, net.Address),
	}
	machine, err := readMachineResolver(cmp.Or(net.ResolvConf, "/etc/resolv.conf"))
	if err != nil {
		return err
	}
	files["resolv.conf"] = etc.ResolverFile(machine, sharesNetwork(spec))
	options := []string{"bind", "rprivate", "nosuid", "nodev", "noexec"}
	if spec.Root.Readonly {
		options = append(options, "ro")
	}
	for name, text := range files {
		to := "/etc/" + name
		if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return ocispec.SamePlace(m.Destination, to) }) {
			continue
		}
		if place, err := root.leadsTo(to); err == nil && ocispec.SystemPlace(place) {
			continue // an image that has /etc/resolv.conf lead to /dev/null wants it so
		}
		if root.readOnly() && !root.has(to) {
			continue
		}
		from := filepath.Join(dir, name)
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(from, 0o644); err != nil { // regardless of the umask
			return err
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: to, Type: "bind", Source: from, Options: options})
	}
	return nil
}

// sharesNetwork reports whether a container shares the system's network.
func sharesNetwork(spec *specs.Spec) bool {
	return !slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.NetworkNamespace
	})
}

// readMachineResolver reads the system's resolv.conf; a missing file is no error.
func readMachineResolver(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the name servers of this machine: %w", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxResolver))
}
