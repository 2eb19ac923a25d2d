package procs

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/vmm"
)

// rootDir is the root of a container, opened from outside. Paths are resolved within it, as by chroot(2).
type rootDir struct{ dir *os.File }

func openRoot(path string) (rootDir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return rootDir{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return rootDir{os.NewFile(uintptr(fd), path)}, nil
}

func (r rootDir) close() { r.dir.Close() }

// open opens a path as a process in the root would resolve it.
func (r rootDir) open(path string, flags int) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 100 { // EAGAIN: a directory was renamed meanwhile
		fd, err := unix.Openat2(int(r.dir.Fd()), path, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: unix.EAGAIN}
}

// has reports whether a path exists.
func (r rootDir) has(path string) bool {
	f, err := r.open(path, unix.O_PATH)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// readOnly reports whether the root is mounted so that nothing can be created in it.
func (r rootDir) readOnly() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(r.dir.Fd()), &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// isDir returns an error unless path is a directory.
func (r rootDir) isDir(path string) error {
	f, err := r.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		f.Close()
	}
	return err
}

// makeDir creates a directory and its missing parents.
func (r rootDir) makeDir(path string) error {
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(path), "/"), "/") {
		parent, err := r.open(at, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		at = filepath.Join(at, name)
		err = r.isDir(at)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(int(parent.Fd()), name, 0o755); err == nil || errors.Is(err, unix.EEXIST) {
				err = r.isDir(at)
			}
		}
		parent.Close()
		if err != nil {
			return fmt.Errorf("make directory %q: %w", at, err)
		}
	}
	return nil
}

// searchable reports whether a user has search permission on all parents of path, judged by their mode bits.
func (r rootDir) searchable(path string, who identity) bool {
	if who.uid == 0 {
		return true
	}
	for at := filepath.Dir(filepath.Clean(path)); ; at = filepath.Dir(at) {
		f, err := r.open(at, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return true // starting the program reports the error
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		f.Close()
		need := uint32(unix.S_IXOTH)
		if st.Uid == who.uid {
			need = unix.S_IXUSR
		} else if st.Gid == who.gid || slices.Contains(who.groups, st.Gid) {
			need = unix.S_IXGRP
		}
		if err == nil && st.Mode&need == 0 {
			return false
		}
		if at == "/" {
			return true
		}
	}
}

// checkSystemDirs returns an error if /proc, /sys or /dev of a root is not a directory. A symbolic link would lead the
// kernel's file systems to another path, without the masked and read-only paths in them.
func (r rootDir) checkSystemDirs() error {
	for _, name := range []string{"proc", "sys", "dev"} {
		f, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		f.Close()
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fmt.Errorf("the root's /%s is no directory (%v): nothing can be mounted there safely: %w",
				name, fi.Mode().Type(), gcsserver.ErrInvalid)
		}
	}
	return nil
}

// programNamed adds the program, directory or user of a command, or a remedy, to an error of the runtime.
func (i *instance) programNamed(cmd command, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotExecuted):
		return i.whyNotExecuted(cmd)
	case errors.Is(err, crun.ErrDir):
		return fmt.Errorf("working directory %q: %w: %w", cmd.Dir, gcsserver.ErrNotFound, err)
	case errors.Is(err, crun.ErrUser) && userns.Inside():
		return fmt.Errorf("%w (user %q: has the user namespace such ids? unshare --map-auto -Urm makes one that has more)",
			err, cmd.User)
	case errors.Is(err, crun.ErrNoPlace):
		return fmt.Errorf("%w; mount the root with a scratch, or with a layer that has the folders proc, sys and dev",
			err)
	case errors.Is(err, crun.ErrProc):
		return fmt.Errorf("%w (%s)", err, coveredProc)
	}
	return fmt.Errorf("program %q: %w", cmd.Args[0], err)
}

// coveredProc explains why /proc cannot be mounted in a user namespace.
const coveredProc = "parts of this system's own /proc are covered, as in containers, and the kernel then gives a " +
	"user namespace no other: run strata outside of that container, or start it with a whole /proc " +
	"(podman run --security-opt unmask=ALL, docker run --security-opt systempaths=unconfined)"

// whyNotExecuted returns an error with the likely reason why the kernel did not execute a program.
func (i *instance) whyNotExecuted(cmd command) error {
	root, err := openRoot(i.c.root)
	if err != nil {
		return err
	}
	defer root.close()
	interpreter := root.interpreter(cmd)
	if interpreter == "" {
		return fmt.Errorf("program %q: %w: the kernel knows no such format: is it for another platform than %s/%s?",
			cmd.Args[0], vmm.ErrNotExecutable, runtime.GOOS, runtime.GOARCH)
	}
	f, err := root.open(interpreter, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("program %q: %w: its interpreter %q: %w", cmd.Args[0], vmm.ErrProgramNotFound, interpreter, err)
	}
	f.Close()
	return fmt.Errorf("program %q: %w, or its interpreter %q", cmd.Args[0], vmm.ErrNotExecutable, interpreter)
}

// interpreter returns the program that the kernel starts in place of a script or a dynamic executable, or "".
func (r rootDir) interpreter(cmd command) string {
	f := r.find(cmd)
	if f == nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE: what the kernel reads
	n, _ := f.ReadAt(head, 0)
	if line, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if fields := bytes.Fields(line); len(fields) > 0 {
			return string(fields[0])
		}
		return ""
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return ""
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < unix.PathMax {
			text, _ := io.ReadAll(p.Open())
			return strings.TrimRight(string(text), "\x00")
		}
	}
	return ""
}

// candidates returns the paths at which a program is looked up.
func (cmd command) candidates() (names []string) {
	switch {
	case filepath.IsAbs(cmd.Args[0]):
		return []string{cmd.Args[0]}
	case strings.Contains(cmd.Args[0], "/"):
		return []string{filepath.Join("/", cmd.Dir, cmd.Args[0])}
	}
	for d := range strings.SplitSeq(cmp.Or(lookupEnv(cmd.Env, "PATH"), defaultPath), ":") {
		names = append(names, filepath.Join("/", d, cmd.Args[0]))
	}
	return names
}

// find opens the executable regular file of a program, or returns nil.
func (r rootDir) find(cmd command) *os.File {
	for _, name := range cmd.candidates() {
		f, err := r.openRegular(name)
		if err != nil {
			continue
		}
		if fi, err := f.Stat(); err == nil && fi.Mode()&0o111 != 0 {
			return f
		}
		f.Close()
	}
	return nil
}
