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

// inDir calls do with a short path for the directory: the path of a socket is limited to 107 bytes.
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

// dialSocket connects to a socket of QEMU, which does not accept connections while it is stopped. If the backlog is
// full, connect fails instead of blocking; dialSocket then retries until ctx ends.
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

// launch starts QEMU, detached from this process, as user uid (0: the current user), and returns the process. The
// state directory must not have files of an earlier one.
func launch(c Config, accel string, uid int, v *vsockDevice) (_ *process, err error) {
	program := c.Program
	if program == "" {
		// The devices and the boot image are those of a PC; other architectures have other machines.
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
	start := startIn
	if c.idle {
		start = startIdle
	}
	child, err := start(c.Namespace, shell, append([]string{shell, "-c", launchScript, shell, program}, args...),
		&os.ProcAttr{
			Dir: "/", Files: append([]*os.File{null, log, log}, files...),
			// A session of its own: Ctrl-C on our terminal must not end the machine. (QEMU's -daemonize does not work
			// in its sandbox.)
			Sys: &syscall.SysProcAttr{Setsid: true, Credential: credentials(uid)},
		})
	if err != nil {
		return nil, fmt.Errorf("qemu: start %s: %w", program, err)
	}
	pid := child.Pid
	if err := child.Release(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	// Only we wait for the process, so its id is not reused even if it has already ended.
	since, err := processStart(pid)
	if err == nil {
		err = writeFile(filepath.Join(c.Dir, "pid"), fmt.Appendf(nil, "%d %d\n", pid, since))
	}
	p, openErr := openProcess(pid, since, "")
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

// startIn starts a program in the network namespace of vmm.StartOptions.Namespace.
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

// lowest is the nice value of the lowest priority.
const lowest = 19

// startIdle starts a program at the lowest priority, in the own network namespace. All threads of the program inherit
// it from the one that starts it, which stays locked and ends with its goroutine: it may not be able to go back.
func startIdle(_, program string, args []string, attr *os.ProcAttr) (child *os.Process, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setpriority(unix.PRIO_PROCESS, 0, lowest); err == nil { // of this thread
			child, err = os.StartProcess(program, args, attr)
		}
	}()
	<-done
	return child, err
}

// QEMU is started by a shell that raises the soft limit on open files to the hard limit: a composite disk needs a
// descriptor for each of its extents, and the usual soft limit is 1024. It cannot be raised from outside once QEMU
// runs as another user, as root in a container lacks the capability.
const (
	shell        = "/bin/sh"
	launchScript = `ulimit -n "$(ulimit -H -n)"; exec "$@"`
)

// kvmUsable returns why KVM cannot be used here, as far as can be told without trying.
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

// processorKind returns what /proc/cpuinfo says of the first processor, as far as a KVM guest sees it.
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

// kvmFlags checks /proc/cpuinfo for hardware virtualisation: /dev/kvm may exist without it.
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
