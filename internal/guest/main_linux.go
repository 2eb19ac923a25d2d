package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
)

// portPrefix is the prefix of the names of virtio-serial ports on which the agent serves hosts.
const portPrefix = "org.stratavm.gcs."

// Main runs the agent as PID 1. It powers the machine off when the agent ends, and returns only if that fails.
func Main(ctx context.Context) int {
	if err := Run(ctx, Config{}); err != nil {
		_ = os.WriteFile("/dev/kmsg", []byte("<2>strata: the agent ends: "+err.Error()+"\n"), 0)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return 1
}

// Run sets up the system as PID 1 and serves hosts until ctx ends.
func Run(ctx context.Context, config Config) error {
	started := time.Now()
	unix.Umask(0o022)
	raiseLimits()
	if err := leaveRootfs(); err != nil {
		return err
	}
	for _, m := range guestMounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !m.optional {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil && !m.optional &&
			!errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	mounted := time.Since(started)
	words := commandLine()
	log := config.Logger
	if log == nil {
		log = kernelLog(words["strata.log"])
	}
	modules := newModules("/lib/modules", log)
	modules.early("/lib/modules.strata")
	loaded := time.Since(started) - mounted
	events, err := mounts.ListenUevents()
	if err != nil {
		return err
	}
	pmem, err := mounts.ParsePMEM(words["strata.pmem"])
	if err != nil {
		log.Error("kernel command line", "err", err)
	}
	spawn := procs.NewSpawner(true)
	rt := newLinuxRuntime(log, spawn, mounts.Config{Base: "/run", Load: modules.load,
		Devices: &mounts.Devices{Sys: "/sys", Dev: "/dev", Events: events, PMEM: pmem}})
	if err := rt.useCrun(spawn); err != nil {
		log.Error("no container will run", "err", err)
	}
	if rt.powerOff = config.PowerOff; rt.powerOff == nil {
		rt.powerOff = powerOffBy(words["strata.poweroff"])
	}
	rt.template.settle, rt.template.renew = modules.background, renew
	rt.template.callHooks(config)
	go modules.readLazy("/lib/modules.strata.lazy")
	go loopbackUp(log)
	g := &guest{rt: rt, log: log, modules: modules, serving: map[string]bool{}, hook: config.Session}
	log.Info("agent is up", "after", time.Since(started), "mounts", mounted, "modules", loaded)
	g.serveVSock(ctx, words)
	return g.servePorts(ctx, events)
}

// leaveRootfs puts a mount over the initial root, which itself can neither be unmounted nor pivoted,
// so that containers can pivot away from everything.
func leaveRootfs() error {
	if err := os.MkdirAll("/run", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", "/run", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the initial root: %w", err)
	}
	if err := os.Chdir("/run"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the initial root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// commandLine returns the "key=value" words of the kernel command line.
func commandLine() map[string]string {
	words := map[string]string{}
	b, _ := os.ReadFile("/proc/cmdline")
	for w := range strings.FieldsSeq(string(b)) {
		k, v, _ := strings.Cut(w, "=")
		words[k] = v
	}
	return words
}

func powerOffBy(how string) func() error {
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if how == "reset" { // for machines without a power switch, whose VMM ends on a reset
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	return func() error { return unix.Reboot(cmd) }
}

// kernelLog writes to the kernel's log, one line of bounded length per record.
func kernelLog(level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(&kmsg{w: f}, &slog.HandlerOptions{Level: l,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
}

type kmsg struct{ w io.Writer }

func (k *kmsg) Write(p []byte) (int, error) {
	const most = 900 // the kernel refuses long records
	line := append([]byte("<6>strata: "), p[:min(len(p), most)]...)
	_, _ = k.w.Write(line)
	return len(p), nil
}

// guest serves hosts.
type guest struct {
	rt      *linuxRuntime
	log     *slog.Logger
	modules *modules
	hook    func(context.Context, io.ReadWriteCloser, ServeFunc) // Config.Session

	mu      sync.Mutex
	serving map[string]bool
}

// servePorts serves each virtio-serial port with portPrefix as it appears, until ctx ends.
func (g *guest) servePorts(ctx context.Context, events *mounts.Uevents) error {
	for {
		next := events.Next()
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			b, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(b, []byte(portPrefix)) {
				continue
			}
			node := "/dev/" + filepath.Base(filepath.Dir(path))
			g.mu.Lock()
			known := g.serving[node]
			g.serving[node] = true
			g.mu.Unlock()
			if !known {
				go g.servePort(ctx, node)
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *guest) servePort(ctx context.Context, node string) {
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.serving, node)
	}()
	f, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		g.log.Error("open port", "port", node, "err", err)
		return
	}
	defer f.Close()
	port, err := newPort(f)
	if err == nil {
		err = gcs.ServePort(port, func(stream io.ReadWriteCloser) { g.session(ctx, stream) })
	}
	g.log.Error("port ended", "port", node, "err", err)
}

func (g *guest) session(ctx context.Context, stream io.ReadWriteCloser) {
	if g.hook != nil {
		g.hook(ctx, stream, g.serve)
		return
	}
	mux, err := gcs.NewGuestMux(stream)
	if err != nil {
		stream.Close()
		return
	}
	defer mux.Close()
	conn, err := mux.Dial(ctx, gcs.PortBridge)
	if err != nil {
		return
	}
	if err := g.serve(ctx, conn, mux.Dial); err != nil {
		g.log.Warn("session ended", "err", err)
	}
}

func (g *guest) serve(ctx context.Context, bridge net.Conn, dial gcsserver.Dialer) error {
	go g.modules.background()
	return gcsserver.Serve(ctx, bridge, dial, g.rt, g.log)
}

// port is a virtio-serial port. While no host is connected, the kernel returns empty reads for ever; here, the first is
// io.EOF, after which Read blocks until the next host writes.
type port struct {
	*os.File
	raw  syscallConn
	hung bool
}

type syscallConn interface {
	Read(func(uintptr) bool) error
}

func newPort(f *os.File) (*port, error) {
	raw, err := f.SyscallConn()
	return &port{File: f, raw: raw}, err
}

func (p *port) Read(b []byte) (int, error) {
	var n int
	var err error
	waited := p.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		return !errors.Is(err, unix.EAGAIN) && (n != 0 || err != nil || !p.hung)
	})
	switch {
	case waited != nil:
		return 0, waited
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", p.Name(), err)
	case n == 0:
		p.hung = true
		return 0, io.EOF
	}
	p.hung = false
	return n, nil
}

// loopbackUp brings up the VM's loopback interface, which containers without a network of their own share.
func loopbackUp(log *slog.Logger) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		var req *unix.Ifreq
		if req, err = unix.NewIfreq("lo"); err == nil {
			req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
		}
	}
	if err != nil {
		log.Debug("loopback", "err", err)
	}
}
