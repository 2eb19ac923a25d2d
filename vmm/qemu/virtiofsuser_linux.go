package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/vmm"
)

// Without root virtiofsd runs in a user namespace, as its root, where the share is at shareRoot just as with root. Go
// can start no program there that prepares mounts first: unshare and mount of util-linux do.

// userShare binds the working directory, or a file in it, at shareRoot, says so on descriptor 4, and executes a program.
// Its arguments are the name of the file, or nothing, the options with which the share is made read-only, or nothing,
// the device and inode that the share is to have, and the program's.
const userShare = `set -e
file=$1 fixed=$2 id=$3
shift 3
mount -t tmpfs -o size=64k,mode=755,nosuid,nodev,noexec tmpfs ` + sharePlace + `
target=` + shareRoot + `
mkdir "$target"
if [ "$file" ]; then
	target=$target/` + vmm.VirtioFSFile + `
	: >"$target"
	mount --no-canonicalize --bind "./$file" "$target"
elif [ "$fixed" ]; then
	mount --no-canonicalize --bind . "$target"
else
	mount --no-canonicalize --rbind . "$target"
fi
if [ "$(stat -c %d:%i "$target")" != "$id" ]; then
	echo "what is shared has changed" >&2
	exit 1
fi
[ -z "$fixed" ] || mount -o "remount,bind,$fixed" "$target"
[ -z "$file" ] || mount -o remount,bind,ro,nosuid,nodev,noexec ` + sharePlace + `
cd /
echo >&4
exec 4>&-
exec "$@"
`

// userNamespace is the beginning of a command line: what follows runs as root of a user namespace.
func userNamespace() ([]string, error) {
	path, err := exec.LookPath("unshare")
	if err != nil {
		return nil, err
	}
	argv := []string{path, "--user", "--map-root-user", "--mount", "--propagation", "private"}
	if hasSubordinates() {
		argv = append(argv, "--map-auto")
	}
	return append(argv, "--"), nil
}

// userShareCommand is what runs a program in a user namespace with the share.
func userShareCommand(d vmm.VirtioFSShare, program string, args []string) (path string, argv []string, dir string,
	err error) {
	if argv, err = userNamespace(); err != nil {
		return "", nil, "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(d.Path, &st); err != nil {
		return "", nil, "", &os.PathError{Op: "stat", Path: d.Path, Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; d.File != (kind == unix.S_IFREG) || !d.File && kind != unix.S_IFDIR {
		return "", nil, "", changedShare(d)
	}
	dir, file := d.Path, ""
	if d.File {
		i := strings.LastIndexByte(d.Path, '/')
		dir, file = d.Path[:i+1], d.Path[i+1:]
	}
	fixed := ""
	if d.ReadOnly {
		if fixed, err = readOnlyOptions(d.Path); err != nil {
			return "", nil, "", err
		}
	}
	argv = append(argv, "/bin/sh", "-c", userShare, "virtiofsd", file, fixed, fmt.Sprintf("%d:%d", st.Dev, st.Ino),
		program)
	return argv[0], append(argv, args...), dir, nil
}

// readOnlyOptions are the options that make the mount of a path read-only: those that it has stay, which a user
// namespace may not take away. A folder with mounts below it is refused, for these would stay as they are.
func readOnlyOptions(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	options := "ro"
	for _, f := range []struct {
		flag int64
		name string
	}{{unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}, {unix.ST_NOATIME, "noatime"},
		{unix.ST_NODIRATIME, "nodiratime"}, {unix.ST_RELATIME, "relatime"}} {
		if st.Flags&f.flag != 0 {
			options += "," + f.name
		}
	}
	below, err := mountBelow(path)
	if err == nil && below != "" {
		err = fmt.Errorf("share %s read-only: %s is mounted below it, which only root can make read-only: "+
			"run strata as root, or share the folder without it: %w", path, below, errors.ErrUnsupported)
	}
	return options, err
}

// mountBelow returns a mount point below a path, or nothing.
func mountBelow(path string) (below string, err error) {
	err = hostmount.EachMount("/proc/self/mountinfo", func(m hostmount.MountLine) {
		if strings.HasPrefix(m.Point, strings.TrimSuffix(path, "/")+"/") {
			below = m.Point
		}
	})
	return below, err
}

// hasSubordinates reports whether this user may map further users and groups, those of a guest.
func hasSubordinates() bool {
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return false
	}
	id := strconv.Itoa(os.Getuid())
	name := id
	if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		found := false
		for line := range strings.Lines(string(b)) {
			owner, _, _ := strings.Cut(line, ":")
			found = found || owner == name || owner == id
		}
		if !found {
			return false
		}
	}
	return true
}

// startUserSharing is startSharing without root. It returns when the share is there: QEMU would wait for it.
func startUserSharing(d vmm.VirtioFSShare, program string, args []string, files []*os.File) (pid int, err error) {
	path, argv, dir, err := userShareCommand(d, program, args)
	if err != nil {
		return 0, err
	}
	ready, says, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	child, err := os.StartProcess(path, argv, &os.ProcAttr{Dir: dir,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: append(files, says),
		Sys: &syscall.SysProcAttr{Setsid: true}})
	says.Close()
	if err != nil {
		return 0, err
	}
	if err = ready.SetReadDeadline(time.Now().Add(helpTime)); err == nil {
		_, err = ready.Read(make([]byte, 1))
	}
	if err != nil {
		_ = unix.Kill(-child.Pid, unix.SIGKILL) // with what it has started; it may have ended
		_, _ = child.Wait()
		return 0, fmt.Errorf("prepare the folder for virtiofsd: %w", err)
	}
	pid = child.Pid
	return pid, child.Release()
}
