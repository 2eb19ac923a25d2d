package procs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/vmm"
)

// defaultPath is PATH if the environment has none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a process to start. Its paths and user are those of the root it runs in.
type command struct {
	Args          []string
	Env           []string
	Dir           string
	MakeDir       bool // create Dir if it is missing
	User          string
	Groups        []uint32
	Terminal      bool
	Width, Height uint16
}

// execute starts a command in the system itself. files are its standard streams; nil is /dev/null. With a terminal,
// files are ignored and the terminal's master is returned. The working directory of the calling thread changes during
// the call.
func (s *Spawner) execute(c command, files [3]*os.File, exited func(status syscall.WaitStatus, last bool)) (pid int,
	master *os.File, err error) {
	root, err := openRoot("/")
	if err != nil {
		return 0, nil, err
	}
	defer root.close()
	who, err := lookupUser(root, c.User)
	if err != nil {
		return 0, nil, err
	}
	who.addGroups(c.Groups)
	env := c.Env
	if lookupEnv(env, "PATH") == "" {
		env = append(env, "PATH="+defaultPath)
	}
	if lookupEnv(env, "HOME") == "" {
		env = append(env, "HOME="+who.home)
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	if !filepath.IsAbs(dir) {
		return 0, nil, fmt.Errorf("working directory %q is not absolute: %w", dir, gcsserver.ErrInvalid)
	}
	if c.MakeDir {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, nil, fmt.Errorf("working directory: %w", err)
		}
	} else if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return 0, nil, fmt.Errorf("working directory %q: no such directory in the root: %w", dir, gcsserver.ErrNotFound)
	}
	path, err := lookupProgram(c.Args[0], dir, lookupEnv(env, "PATH"))
	if err != nil {
		return 0, nil, err
	}
	leave, then, err := enterDir(dir)
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	attr := &syscall.ProcAttr{Dir: then, Env: env, Sys: &syscall.SysProcAttr{Setsid: true,
		Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups, NoSetGroups: !maySetGroups()}}}
	if c.Terminal {
		var slave *os.File
		if master, slave, err = openTerminal(int(who.uid), c.Width, c.Height); err != nil {
			return 0, nil, err
		}
		defer slave.Close()
		if lookupEnv(env, "TERM") == "" {
			attr.Env = append(attr.Env, "TERM=xterm")
		}
		attr.Sys.Setctty = true
		files = [3]*os.File{slave, slave, slave}
	}
	for _, f := range files {
		if f == nil {
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				return 0, nil, err
			}
			defer null.Close()
			f = null
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err = s.start(path, c.Args, attr, exited)
	err = programError(c.Args[0], err)
	if errors.Is(err, syscall.EINVAL) && userns.Inside() {
		err = fmt.Errorf("%w (user %d:%d: has the user namespace such ids? unshare --map-auto -Urm makes one that has more)",
			err, who.uid, who.gid)
	}
	if err != nil && master != nil {
		master.Close()
		master = nil
	}
	return pid, master, err
}

// enterDir changes the working directory, which a started process inherits: the process's user may have no search
// permission on the path. If root has none, as on network file systems, then is the directory that the process must
// enter itself, as its user. leave changes back to the root.
func enterDir(dir string) (leave func(), then string, err error) {
	switch err := unix.Chdir(dir); {
	case err == nil:
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		then = dir
	default:
		return nil, "", fmt.Errorf("working directory %q: %w", dir, err)
	}
	return func() { _ = unix.Chdir("/") }, then, nil
}

// onOwnThread calls f on a new thread with its own working directory. The thread ends with f.
func onOwnThread(f func()) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			f()
		}
		result <- err
	}()
	return <-result
}

// maySetGroups reports whether setgroups(2) is allowed. In a user namespace created without privileges it is not,
// because dropping a group could give access to files that deny that group.
func maySetGroups() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err != nil || strings.TrimSpace(string(b)) != "deny"
}

func lookupEnv(env []string, key string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

// lookupProgram finds a program as execvp would.
func lookupProgram(name, dir, path string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("the program's name is empty: %w", gcsserver.ErrInvalid)
	}
	if strings.Contains(name, "/") {
		if filepath.IsAbs(name) {
			return name, executable(name)
		}
		return name, executable(filepath.Join(dir, name)) // relative: dir's path may not be searchable for the user
	}
	var denied error
	for d := range strings.SplitSeq(path, ":") {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		err := executable(p)
		if err == nil {
			return p, nil
		}
		if errors.Is(err, vmm.ErrNotExecutable) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("program %q is not in PATH (%s): %w", name, path, vmm.ErrProgramNotFound)
}

func executable(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return programError(path, err)
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("program %q: %w: no file with the right to be executed", path, vmm.ErrNotExecutable)
	}
	return nil
}

// programError classifies an error of starting a program as vmm.ErrProgramNotFound or vmm.ErrNotExecutable, if it is
// one.
func programError(name string, err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		kind = vmm.ErrProgramNotFound // or its interpreter was not found
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ELIBBAD), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ETXTBSY):
		kind = vmm.ErrNotExecutable
	default:
		return err
	}
	return fmt.Errorf("program %q: %w: %w", name, kind, err)
}

// identity is the user and groups of a process.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxAccounts bounds what is read of passwd and group, in bytes.
const maxAccounts = 4 << 20

// addGroups adds supplementary groups.
func (id *identity) addGroups(groups []uint32) {
	for _, g := range groups {
		if !slices.Contains(id.groups, g) {
			id.groups = append(id.groups, g)
		}
	}
}

// lookupUser resolves "", "name", "uid", "uid:gid" and "name:group" with the files in a root.
func lookupUser(root rootDir, spec string) (identity, error) {
	id := identity{home: "/"}
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	number, notNumber := strconv.ParseUint(user, 10, 32)
	found, name := false, ""
	err := accounts(root, "/etc/passwd", 4, 7, func(f []string) bool {
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || (notNumber == nil && uid != number) || (notNumber != nil && f[0] != user) {
			return true
		}
		gid, err := strconv.ParseUint(f[3], 10, 32)
		if err != nil {
			return true
		}
		id.uid, id.gid, name, found = uint32(uid), uint32(gid), f[0], true
		if filepath.IsAbs(f[5]) {
			id.home = f[5]
		}
		return false
	})
	if err != nil {
		return id, err
	}
	if !found {
		if notNumber != nil {
			return id, fmt.Errorf("user %q is not in the root's /etc/passwd: %w", user, gcsserver.ErrNotFound)
		}
		id.uid = uint32(number)
	}
	groupNumber, groupNotNumber := strconv.ParseUint(group, 10, 32)
	found = groupNotNumber == nil || !hasGroup
	err = accounts(root, "/etc/group", 3, 4, func(f []string) bool {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return true
		}
		if hasGroup && groupNotNumber != nil && f[0] == group {
			groupNumber, found = gid, true
		}
		if !hasGroup && name != "" && len(id.groups) < 1024 {
			for member := range strings.SplitSeq(f[3], ",") {
				if member == name {
					id.groups = append(id.groups, uint32(gid))
				}
			}
		}
		return true
	})
	if err != nil {
		return id, err
	}
	if !found {
		return id, fmt.Errorf("group %q is not in the root's /etc/group: %w", group, gcsserver.ErrNotFound)
	}
	if hasGroup {
		id.gid = uint32(groupNumber)
	}
	return id, nil
}

// accounts calls f with the fields of each entry of a passwd or group file, until f returns false. Entries with fewer
// than least fields are skipped, others are padded with empty fields to most. A missing file is empty.
//
// Like glibc it skips blanks before an entry, comments, and NIS entries ("+", "-"). moby/sys/user is not used: it takes
// a missing or malformed number as 0, so that a damaged line makes its user root.
func accounts(root rootDir, path string, least, most int, f func([]string) bool) error {
	file, err := root.openRegular(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimLeft(lines.Text(), " \t\r\v\f")
		if line == "" || strings.ContainsAny(line[:1], "#+-") {
			continue
		}
		parts := strings.SplitN(line, ":", most)
		if len(parts) < least {
			continue
		}
		parts = append(parts, make([]string, most-len(parts))...)
		if !f(parts) {
			return nil
		}
	}
	return lines.Err()
}

// openTerminal creates a pseudo-terminal that belongs to uid, of this process's /dev/pts.
func openTerminal(uid int, width, height uint16) (master, slave *os.File, err error) {
	fail := func(err error) (*os.File, *os.File, error) {
		if master != nil {
			master.Close()
		}
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	if err := resizeTerminal(master, width, height); err != nil {
		return fail(err)
	}
	if slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	if err := slave.Chown(uid, -1); err != nil {
		slave.Close()
		return fail(err)
	}
	return master, slave, nil
}

func resizeTerminal(master *os.File, width, height uint16) error {
	if width == 0 || height == 0 {
		return nil
	}
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := conn.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}); err != nil {
		return err
	}
	return set
}
