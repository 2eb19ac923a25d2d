package bootimage

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// feature is a kernel feature with its modules. Modules that are built in or missing are left out.
type feature struct {
	name    string
	modules []string // in load order
	needed  bool     // required by every utility VM
}

// early are the features needed to communicate with the host; lazy are loaded at first use.
var (
	early = []feature{
		{"virtio_pci", []string{"virtio_pci"}, true},
		{"virtio_console", []string{"virtio_console"}, true},
	}
	lazy = []feature{
		// The checksum that ext4 and EROFS request from the crypto layer by name, which is not in modules.dep.
		{"crc32c", []string{"crc32c_generic", "crc32c_intel"}, false},
		{"virtio_scsi", []string{"virtio_scsi"}, true},
		{"sd_mod", []string{"sd_mod"}, true},
		{"ext4", []string{"ext4"}, true},
		{"erofs", []string{"erofs"}, false},
		{"overlay", []string{"overlay"}, true},
		{"virtio_pmem", []string{"virtio_pmem"}, false},
		{"nd_pmem", []string{"nd_pmem"}, false},
		{"dm-verity", []string{"sha256_generic", "dm_verity"}, false},
		{"9p", []string{"9p"}, false},
		{"9pnet_fd", []string{"9pnet_fd"}, false},
		{"9pnet_virtio", []string{"9pnet_virtio"}, false},
		{"virtio_net", []string{"virtio_net"}, false},
		{"virtiofs", []string{"virtiofs"}, false},
		{"vmw_vsock_virtio_transport", []string{"vmw_vsock_virtio_transport"}, false},
		{"loop", []string{"loop"}, false},
		{"bridge", []string{"bridge"}, false},
	}
)

// modules is the content of a kernel's modules.dep and modules.builtin. Module names are normalised: for the kernel,
// "-" and "_" are the same.
type modules struct {
	dir     string
	file    map[string]string   // name: path relative to dir
	deps    map[string][]string // name: names it needs, directly or not
	builtin map[string]bool
}

func moduleName(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i >= 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

func loadModules(dir string) (*modules, error) {
	m := &modules{dir: dir, file: map[string]string{}, deps: map[string][]string{}, builtin: map[string]bool{}}
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("reading the modules of the kernel: %w", err)
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		name := moduleName(file)
		m.file[name] = file
		for _, d := range strings.Fields(needs) {
			m.deps[name] = append(m.deps[name], moduleName(d))
		}
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("reading the modules of the kernel: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return m, nil
}

// check returns an error if a needed module is neither present nor built in.
func (m *modules) check() error {
	for _, f := range append(append([]feature(nil), early...), lazy...) {
		for _, name := range f.modules {
			if n := strings.ReplaceAll(name, "-", "_"); f.needed && m.file[n] == "" && !m.builtin[n] {
				return fmt.Errorf("%s in %s: %w", name, m.dir, ErrModule)
			}
		}
	}
	return nil
}

// order returns the modules of f to load, each after its dependencies, regardless of the order in modules.dep.
func (m *modules) order(f feature) []string {
	var out []string
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] || m.builtin[name] || m.file[name] == "" {
			return
		}
		seen[name] = true
		for _, d := range m.deps[name] {
			visit(d)
		}
		out = append(out, name)
	}
	for _, name := range f.modules {
		visit(name)
	}
	return out
}
