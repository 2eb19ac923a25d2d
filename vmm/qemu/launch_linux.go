package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/vmm"
)

// inDir calls do with a short path for the directory: that of a socket may have 107 bytes only.
func inDir(dir string, do func(short string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
}

// listenSocket creates a listening socket and returns its descriptor as a file.
func listenSocket(dir, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	err = inDir(dir, func(short string) error {
		return unix.Bind(fd, &unix.SockaddrUnix{Name: short + "/" + name})
	})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("socket %s in %s: %w", name, dir, err)
	}
	return f, nil
}

// dialSocket connects to a socket of QEMU, which takes no connection while it is stopped. Once those that
// wait fill the queue the next one fails instead of waiting; it is to wait as well, until ctx ends.
func dialSocket(ctx context.Context, dir, name string) (conn net.Conn, err error) {
	for {
		err = inDir(dir, func(short string) error {
			var d net.Dialer
			conn, err = d.DialContext(context.WithoutCancel(ctx), "unix", short+"/"+name) // it never waits
			return err
		})
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("socket %s in %s: %w", name, dir, context.Cause(ctx))
		case <-time.After(dialPause):
		}
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s in %s: %w", name, dir, err)
	}
	return conn, nil
}

const dialPause = 50 * time.Millisecond

const qemuProgram = "qemu-system-x86_64"

// launch starts QEMU, detached from us, as the user given (0: as we are), and returns the process. The
// state directory holds nothing of an earlier one.
func launch(c Config, accel string, uid int, v *vsockDevice) (_ *process, err error) {
	program := c.Program
	if program == "" {
		// The devices and the boot image are those of a PC; other processors have other machines.
		if runtime.GOARCH != "amd64" {
			return nil, fmt.Errorf("qemu: a %s host: %w", runtime.GOARCH, errors.ErrUnsupported)
		}
		if program, err = exec.LookPath(qemuProgram); err != nil {
			return nil, fmt.Errorf("qemu: %w; install it with: apt-get install qemu-system-x86", err)
		}
	}
	files, err := inherited(c, uid, v)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	log, err := regfile.OpenFile(filepath.Join(c.Dir, logFile), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer null.Close()
	args := c.arguments(accel, v)
	if c.rewrite != nil {
		args = c.rewrite(args)
	}
	begin := raiseFileLimit + execNow
	if c.idle {
		begin = raiseFileLimit + execIdle
	}
	child, err := startIn(c.Namespace, shell, append([]string{shell, "-c", begin, shell, program}, args...),
		&os.ProcAttr{
			Dir: "/", Files: append([]*os.File{null, log, log}, files...),
			// A session of its own: Ctrl-C at our terminal is not for the machine. (QEMU's own way to
			// detach is not possible inside its sandbox.)
			Sys: &syscall.SysProcAttr{Setsid: true, Credential: credentials(uid)},
		})
	if err != nil {
		return nil, fmt.Errorf("qemu: start %s: %w", program, err)
	}
	pid := child.Pid
	if err := child.Release(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	// Nobody else waits for it, so that the number is still ours even if it has ended already.
	start, err := processStart(pid)
	if err == nil {
		err = writeFile(filepath.Join(c.Dir, "pid"), fmt.Appendf(nil, "%d %d\n", pid, start))
	}
	p, openErr := openProcess(pid, start, "")
	if openErr != nil {
		return nil, fmt.Errorf("qemu: start %s: %w%s", program, errors.Join(err, openErr), logTail(c.Dir))
	}
	if err != nil {
		err = errors.Join(err, p.kill())
		p.close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return p, nil
}

// startIn starts a program in a network namespace of vmm.StartOptions.
func startIn(namespace, program string, args []string, attr *os.ProcAttr) (child *os.Process, err error) {
	switch namespace {
	case "":
		return os.StartProcess(program, args, attr)
	case vmm.NewNamespace:
		attr.Sys.Cloneflags |= unix.CLONE_NEWNET
		child, err = os.StartProcess(program, args, attr)
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (a network namespace is made by root)", err)
		}
		return child, err
	}
	ns, err := tapnet.Open(namespace)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = nsthread.Run(ns, func() error {
		child, err = os.StartProcess(program, args, attr)
		return err
	})
	return child, err
}

// QEMU begins as a shell that raises the soft limit on open files to the hard one: a disk takes a
// descriptor for each of its extents, and the soft limit of most systems is 1024. From outside only a
// privilege that root in a container lacks could do so once QEMU runs as another user.
const (
	shell          = "/bin/sh"
	raiseFileLimit = `ulimit -n "$(ulimit -H -n)"; `
	execNow        = `exec "$@"`
	execIdle       = `exec nice -n 19 "$@"`
)

// kvmUsable reports why KVM cannot run a machine here, as far as can be seen from outside.
func kvmUsable() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("KVM: %w", err)
	}
	f.Close()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("KVM: %w", err)
	}
	return kvmFlags(string(info))
}

// processorKind is what /proc/cpuinfo says of the first processor that a guest under KVM sees of it.
func processorKind(cpuinfo string) string {
	var kind []string
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		key, _, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags":
			kind = append(kind, line)
		}
	}
	return strings.Join(kind, "")
}

// kvmFlags looks for hardware virtualisation in /proc/cpuinfo: /dev/kvm may be there without.
func kvmFlags(cpuinfo string) error {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			for _, flag := range strings.Fields(value) {
				if flag == "vmx" || flag == "svm" {
					return nil
				}
			}
		}
	}
	return errors.New("KVM: this processor shows no vmx or svm; /dev/kvm would be emulated")
}
