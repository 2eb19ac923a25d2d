package bootimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
)

// kernel is an installed kernel with its modules.
type kernel struct {
	path    string
	release string
	modules *modules
}

// packages are the Debian packages of the kernel, by architecture.
var packages = map[string]string{"amd64": "linux-image-amd64", "arm64": "linux-image-arm64"}

// installCommand returns the command that installs a kernel.
func installCommand() string {
	p, ok := packages[runtime.GOARCH]
	if !ok {
		return "install a kernel of your distribution"
	}
	return "sudo apt-get install " + p + " (Debian) or linux-image-generic (Ubuntu)"
}

// NoKernelError is the error that no installed kernel can be booted. It matches ErrNoKernel and Err.
type NoKernelError struct {
	Err    error  // the problems of the installed kernels
	Remedy string // a command
}

func (e *NoKernelError) Error() string {
	return fmt.Sprintf("bootimage: %v: %v; remedy: %s", ErrNoKernel, e.Err, e.Remedy)
}

func (e *NoKernelError) Unwrap() []error { return []error{ErrNoKernel, e.Err} }

// findKernel picks the newest kernel that has the modules a utility VM needs.
func findKernel(o Options) (kernel, error) {
	candidates := kernelFiles(o)
	if len(candidates) == 0 {
		return kernel{}, &NoKernelError{fmt.Errorf("nothing in %s or %s", o.KernelDir, o.ModulesDir), installCommand()}
	}
	var errs []error
	remedy := installCommand()
	for _, k := range candidates {
		var err error
		if k.modules, err = loadModules(filepath.Join(o.ModulesDir, k.release)); err == nil {
			err = k.modules.check()
		}
		if err == nil {
			if err = readable(k.path); errors.Is(err, fs.ErrPermission) { // Ubuntu installs them for root only
				remedy = fmt.Sprintf("sudo chmod 0644 '%s'", k.path)
			}
		}
		if err == nil {
			return k, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", k.path, err))
	}
	return kernel{}, &NoKernelError{errors.Join(errs...), remedy}
}

// readable returns an error if a kernel cannot be read.
func readable(path string) error {
	f, _, err := regfile.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// kernelFiles returns the installed kernels, newest first.
func kernelFiles(o Options) []kernel {
	if o.Kernel != "" {
		rel := o.Release
		if rel == "" {
			_, rel, _ = strings.Cut(filepath.Base(o.Kernel), "-")
		}
		return []kernel{{path: o.Kernel, release: rel}}
	}
	found := map[string]kernel{}
	for _, pattern := range []string{"vmlinuz-*", "Image-*", "vmlinux-*"} {
		paths, _ := filepath.Glob(filepath.Join(o.KernelDir, pattern)) // the pattern is valid
		for _, p := range paths {
			_, rel, _ := strings.Cut(filepath.Base(p), "-")
			if _, ok := found[rel]; !ok {
				found[rel] = kernel{path: p, release: rel}
			}
		}
	}
	// Fedora and its kin keep the kernel next to its modules.
	paths, _ := filepath.Glob(filepath.Join(o.ModulesDir, "*", "vmlinuz"))
	for _, p := range paths {
		rel := filepath.Base(filepath.Dir(p))
		if _, ok := found[rel]; !ok {
			found[rel] = kernel{path: p, release: rel}
		}
	}
	out := make([]kernel, 0, len(found))
	for _, k := range found {
		if o.Release == "" || o.Release == k.release {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b kernel) int { return compareReleases(b.release, a.release) })
	return out
}

// compareReleases orders "6.9.0-1" before "6.10.0-1": runs of digits count as numbers.
func compareReleases(a, b string) int {
	fa, fb := fields(a), fields(b)
	for i := range min(len(fa), len(fb)) {
		na, errA := strconv.ParseUint(fa[i], 10, 64)
		nb, errB := strconv.ParseUint(fb[i], 10, 64)
		c := strings.Compare(fa[i], fb[i])
		if errA == nil && errB == nil {
			c = cmp.Compare(na, nb)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(fa), len(fb))
}

// fields splits s between digits and other characters.
func fields(s string) []string {
	var out []string
	start := 0
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	for i := 1; i <= len(s); i++ {
		if i == len(s) || digit(s[i]) != digit(s[i-1]) {
			out = append(out, s[start:i])
			start = i
		}
	}
	return out
}

// kernel returns the file to boot: the uncompressed ELF image with a PVH entry point, if k contains one, else k itself.
func (o *Options) kernel(ctx context.Context, k kernel) (string, error) {
	image, err := os.ReadFile(k.path)
	if err != nil {
		return "", fmt.Errorf("bootimage: reading the kernel: %w", err)
	}
	payload, size, err := bzImagePayload(image)
	if err != nil {
		o.Logger.Debug("booting the kernel as it is", "kernel", k.path, "reason", err)
		return k.path, nil
	}
	path, err := o.cached(ctx, "vmlinux-"+digest([]byte("1"), image), func(f cacheFile) error {
		if err := decompressKernel(f, payload, size); err != nil {
			return err
		}
		return checkPVH(f)
	})
	if errors.Is(err, errKernelForm) {
		o.Logger.Warn("the guest will unpack its kernel itself, which takes longer", "kernel", k.path, "reason", err)
		return k.path, nil
	}
	return path, err
}

// Kernel returns the installed kernel that Build would use. It builds nothing.
func Kernel(o Options) (path, release string, err error) {
	if err := o.defaults(); err != nil {
		return "", "", err
	}
	k, err := findKernel(o)
	return k.path, k.release, err
}
