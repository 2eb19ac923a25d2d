package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/vmm"
)

// defaultPath is where programs are looked for when the environment does not say.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a process as the one who forks it needs it, within the root it will run in.
type command struct {
	Args          []string
	Env           []string
	Dir           string
	MakeDir       bool // make Dir when it is missing
	User          string
	Terminal      bool
	Width, Height uint16
}

// execute starts a command. files are its standard streams; nil is /dev/null. With a terminal files
// are not used and the master of the terminal is returned.
func (s *spawner) execute(c command, files [3]*os.File, exited func(status syscall.WaitStatus, last bool)) (pid int, master *os.File, err error) {
	who, err := lookupUser("/", c.User)
	if err != nil {
		return 0, nil, err
	}
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
		return 0, nil, fmt.Errorf("working directory %q is not absolute: %w", dir, errInvalid)
	}
	if c.MakeDir {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, nil, fmt.Errorf("working directory: %w", err)
		}
	} else if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return 0, nil, fmt.Errorf("working directory %q: no such directory in the root: %w", dir, errNotFound)
	}
	path, err := lookupProgram(c.Args[0], dir, lookupEnv(env, "PATH"))
	if err != nil {
		return 0, nil, err
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true,
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
		err = fmt.Errorf("%w (user %d:%d: has the user namespace such ids? unshare --map-auto -Urm makes one that has more)", err, who.uid, who.gid)
	}
	if err != nil && master != nil {
		master.Close()
		master = nil
	}
	return pid, master, err
}

// maySetGroups reports whether processes can have other supplementary groups. In a user namespace that a
// user made without help they cannot: whom a group keeps out would be let in without it.
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
		return "", fmt.Errorf("the program's name is empty: %w", errInvalid)
	}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, executable(name)
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

// programError says which kind of error keeps a program from being started.
func programError(name string, err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		kind = vmm.ErrProgramNotFound // or the interpreter that it names
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ELIBBAD), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ETXTBSY):
		kind = vmm.ErrNotExecutable
	default:
		return err
	}
	return fmt.Errorf("program %q: %w: %w", name, kind, err)
}

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxAccounts bounds what is read of passwd and group, in bytes.
const maxAccounts = 4 << 20

// lookupUser resolves "", "name", "uid", "uid:gid" and "name:group" with the files below root, which
// must be trusted not to lead elsewhere.
func lookupUser(root, spec string) (identity, error) {
	id := identity{home: "/"}
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	number, notNumber := strconv.ParseUint(user, 10, 32)
	found, name := false, ""
	err := accounts(root+"/etc/passwd", 7, func(f []string) bool {
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
			return id, fmt.Errorf("user %q is not in the root's /etc/passwd: %w", user, errNotFound)
		}
		id.uid = uint32(number)
	}
	groupNumber, groupNotNumber := strconv.ParseUint(group, 10, 32)
	found = groupNotNumber == nil || !hasGroup
	err = accounts(root+"/etc/group", 4, func(f []string) bool {
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
		return id, fmt.Errorf("group %q is not in the root's /etc/group: %w", group, errNotFound)
	}
	if hasGroup {
		id.gid = uint32(groupNumber)
	}
	return id, nil
}

// accounts calls f with the fields of each line that has as many; f returns false to stop. A file that
// is not there is empty.
func accounts(path string, fields int, f func([]string) bool) error {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if fi, err := file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", path, errInvalid)
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if parts := strings.Split(lines.Text(), ":"); len(parts) >= fields && !f(parts) {
			return nil
		}
	}
	return lines.Err()
}

// openTerminal makes a pseudo terminal of the root it is called in.
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
