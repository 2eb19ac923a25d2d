package layerdir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/vhd"
)

// ScratchName is the name of the disk in a scratch folder.
const ScratchName = "sandbox.vhdx"

// DefaultScratchSize is the size of a scratch if ScratchOptions.Size is 0, the same as on Windows hosts. The file
// grows as data is written.
const DefaultScratchSize = 20 << 30

const (
	minScratchSize   = 16 << 20
	maxScratchSize   = 16 << 40 // ext4 with 4 KiB blocks and 32-bit block numbers
	scratchSizeUnit  = 1 << 20  // VHDX block size
	templateRevision = 1        // part of the template's name: increment it if the options below change
)

// ScratchOptions are the options of CreateScratch.
type ScratchOptions struct {
	Dir  string // the scratch folder; created if needed
	Size int64  // size of the disk in bytes, a multiple of 1 MiB; 0: DefaultScratchSize
	// CacheDir stores one template per size, from which further scratches are cloned (by reflink if the file system
	// can, else by a sparse copy). Empty: no template.
	CacheDir string
	// Unformatted leaves the disk empty: the guest formats it when it is first mounted, and must have mkfs.ext4 (Linux
	// guests of 2021 do not format). It needs no programs on the host and works on Windows.
	Unformatted bool
}

// CreateScratch creates Dir/sandbox.vhdx: a dynamic VHDX with an empty ext4 file system, without a journal because a
// scratch is not used after a crash of its machine. It needs the programs mkfs.ext4 and qemu-img unless Unformatted is
// set, but no privileges. If the disk exists, the error matches fs.ErrExist. Several processes may call it
// concurrently, with the same CacheDir too.
func CreateScratch(ctx context.Context, o ScratchOptions) (path string, err error) {
	if o.Size == 0 {
		o.Size = DefaultScratchSize
	}
	if o.Size < minScratchSize || o.Size > maxScratchSize || o.Size%scratchSizeUnit != 0 {
		return "", fmt.Errorf("create scratch %s: size %d: choose a multiple of 1 MiB from 16 MiB to 16 TiB", o.Dir, o.Size)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return "", fmt.Errorf("create scratch: %w", err)
	}
	path = filepath.Join(dir, ScratchName)
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("create scratch: %s: %w: remove it first, or choose another folder", path, fs.ErrExist)
	}
	wrap := func(err error) error { return fmt.Errorf("create scratch %s: %w", path, err) }

	source := ""
	if o.CacheDir != "" && !o.Unformatted {
		if source, err = scratchTemplate(ctx, o.CacheDir, o.Size); err != nil {
			return "", wrap(err)
		}
	}
	out, err := newOutput(dir, ScratchName)
	if err != nil {
		return "", wrap(err)
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	switch {
	case o.Unformatted:
		var length int64
		if length, err = vhd.WriteVHDX(out.file, o.Size); err == nil {
			err = out.file.Truncate(length)
		}
	case source != "":
		err = cloneFile(ctx, out.file, source)
	default:
		err = formatScratch(ctx, out.file.Name(), o.Size)
	}
	if err != nil {
		return "", wrap(err)
	}
	if err := out.commit(false); err != nil {
		return "", wrap(err)
	}
	return path, nil
}

// scratchTemplate returns the path of the template for a size and creates it if needed. If two processes create it
// concurrently, the last rename wins; the files are equivalent.
func scratchTemplate(ctx context.Context, cacheDir string, size int64) (path string, err error) {
	cacheDir, err = filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("scratch-r%d-%d.vhdx", templateRevision, size)
	path = filepath.Join(cacheDir, name)
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
		return path, nil
	}
	out, err := newOutput(cacheDir, name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	if err := formatScratch(ctx, out.file.Name(), size); err != nil {
		return "", err
	}
	return path, out.commit(true)
}

// formatScratch writes a VHDX with an empty ext4 file system to the existing file at path, which must be absolute:
// mkfs.ext4 formats a sparse raw file next to it, which qemu-img converts.
func formatScratch(ctx context.Context, path string, size int64) (err error) {
	raw, err := os.CreateTemp(filepath.Dir(path), ".raw-*.tmp")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(raw.Name())) }()
	if err := errors.Join(raw.Truncate(size), raw.Close()); err != nil {
		return err
	}
	// Absolute paths start with a slash: neither program takes one for an option, and qemu-img does not take one for a
	// protocol such as "nbd:".
	err = runTool(ctx, "mkfs.ext4", "e2fsprogs", "-q", "-F", "-b", "4096", "-m", "0",
		"-E", "lazy_itable_init=0,root_owner=0:0", "-O", "^has_journal,sparse_super2,^resize_inode", raw.Name())
	if err != nil {
		return err
	}
	return runTool(ctx, "qemu-img", "qemu-utils", "convert", "-q", "-f", "raw", "-O", "vhdx",
		"-o", "subformat=dynamic,block_size=1048576", raw.Name(), path)
}

func runTool(ctx context.Context, program, debianPackage string, args ...string) error {
	bin, err := lookTool(program)
	if err != nil {
		return fmt.Errorf("%s is needed: install the package %s: %w", program, debianPackage, err)
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// lookTool finds a program in PATH or in the sbin directories, which users often do not have in their PATH.
func lookTool(program string) (string, error) {
	bin, err := exec.LookPath(program)
	if err == nil {
		return bin, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if bin, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return bin, nil
		}
	}
	return "", err
}
