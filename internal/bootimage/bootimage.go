package bootimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/vmm"
)

// Options are the sources of a boot image. The zero value takes everything from this host.
type Options struct {
	Kernel     string // a bzImage, vmlinux or Image; empty: the newest one in KernelDir with modules
	KernelDir  string // empty: /boot
	ModulesDir string // has a directory per kernel release; empty: /lib/modules
	Release    string // the release of Kernel; empty: what follows the first "-" of its name
	InitPath   string // a program that contains the guest's agent; empty: the result of FindInit
	Mkfs       string // mke2fs; empty: mkfs.ext4 of this host; "none": leave it out
	// Runtime is the guest's container runtime, crun or runc; empty: crun of this host, else runc; "none": leave it
	// out. Without one the guest runs no containers.
	Runtime string
	// Pause is the pause and init program of containers, catatonit; empty: that of this host; "none": leave it out.
	// Without it the guest runs no containers.
	Pause    string
	CacheDir string // empty: "strata/boot" in the user's cache directory
	Logger   *slog.Logger
}

var (
	// ErrNoKernel: no kernel with its modules was found.
	ErrNoKernel = errors.New("no usable kernel is installed")
	// ErrModule: a kernel lacks a module that a utility VM needs.
	ErrModule = errors.New("the kernel lacks a needed module")
)

// cmdline are kernel parameters, for any VMM, that make booting faster, and make a guest end instead of hanging after a
// panic.
var cmdline = []string{"panic=-1", "reboot=t", "quiet", "random.trust_cpu=on", "cryptomgr.notests", "no_timer_check",
	"rcupdate.rcu_expedited=1"}

// keep is how long an unused file is kept in the cache.
const keep = 14 * 24 * time.Hour

// Build creates the image, or finds it in the cache. The files are removed when Build has not returned them for two
// weeks; a VM needs them only while it starts.
func Build(ctx context.Context, o Options) (img vmm.BootImage, err error) {
	err = span.Do(ctx, "strata.boot.image", func(ctx context.Context) error {
		img, err = build(ctx, o)
		return err
	})
	return img, err
}

func build(ctx context.Context, o Options) (vmm.BootImage, error) {
	if err := o.defaults(); err != nil {
		return vmm.BootImage{}, err
	}
	var err error
	if o.InitPath, err = FindInit(o.InitPath); err != nil {
		return vmm.BootImage{}, err
	}
	k, err := findKernel(o)
	if err != nil {
		return vmm.BootImage{}, err
	}
	if err := os.MkdirAll(o.CacheDir, 0o700); err != nil {
		return vmm.BootImage{}, fmt.Errorf("bootimage: making the cache: %w", err)
	}
	img := vmm.BootImage{KernelRelease: k.release, Cmdline: append([]string(nil), cmdline...)}
	if img.Kernel, err = o.kernel(ctx, k); err != nil {
		return vmm.BootImage{}, err
	}
	files, err := collect(o, k)
	if err != nil {
		return vmm.BootImage{}, err
	}
	if img.Initrd, err = o.initrd(ctx, files); err != nil {
		return vmm.BootImage{}, err
	}
	if filepath.Dir(img.Kernel) == filepath.Clean(o.CacheDir) { // else it is as given, and may be replaced
		img.ID = filepath.Base(img.Kernel) + " " + filepath.Base(img.Initrd)
	}
	prune(o.CacheDir, time.Now().Add(-keep))
	return img, nil
}

func (o *Options) defaults() error {
	if o.KernelDir == "" {
		o.KernelDir = "/boot"
	}
	if o.ModulesDir == "" {
		o.ModulesDir = "/lib/modules"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CacheDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil { // no $HOME, as in a system service
			dir = "/var/cache"
		}
		o.CacheDir = filepath.Join(dir, "strata", "boot")
	}
	return nil
}

// cached returns the path of a file of the cache, and creates it atomically by write if it does not exist.
func (o *Options) cached(ctx context.Context, name string, write func(cacheFile) error) (path string, err error) {
	path = filepath.Join(o.CacheDir, name)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return path, nil
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
		return path, nil // another user's file: it can be used, but its time cannot be changed
	}
	start := time.Now()
	f, err := atomicfile.Create(path, atomicfile.Options{Sync: true})
	if err != nil {
		return "", fmt.Errorf("bootimage: writing to the cache: %w", err)
	}
	if err := write(&ctxFile{f, ctx}); err != nil {
		return "", fmt.Errorf("bootimage: making %s: %w", path, errors.Join(err, f.Abandon()))
	}
	if err := f.Commit(); err != nil {
		return "", fmt.Errorf("bootimage: making %s: %w", path, err)
	}
	o.Logger.Info("made", "file", path, "took", time.Since(start).Round(time.Millisecond))
	return path, nil
}

// cacheFile is a file of the cache while it is written.
type cacheFile interface {
	io.Writer
	io.ReaderAt // what was written
}

// ctxFile stops a long write when its context ends.
type ctxFile struct {
	f   *atomicfile.File
	ctx context.Context
}

func (c *ctxFile) Write(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.f.Write(b)
}

func (c *ctxFile) ReadAt(b []byte, at int64) (int, error) { return c.f.ReadAt(b, at) }

// prune removes files that were last used before t. Errors are ignored: the next call tries again.
func prune(dir string, t time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && fi.ModTime().Before(t) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// digest returns a short hash of content for a file name. 128 bits suffice: a collision would need an attacker who
// chooses the files of the host's kernel packages.
func digest(chunks ...[]byte) string {
	h := sha256.New()
	for _, c := range chunks {
		fmt.Fprintf(h, "%d\n", len(c))
		h.Write(c)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
