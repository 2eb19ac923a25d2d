package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// What a test needs that cannot make it itself, because it runs in a VM: see nested.
const (
	envKernel  = "STRATA_TEST_KERNEL"
	envInitrd  = "STRATA_TEST_INITRD"
	envCmdline = "STRATA_TEST_CMDLINE"
	envDisk    = "STRATA_TEST_DISK"
	envHost    = "STRATA_TEST_HOST"   // directory of the machine that TestVSockHost works with
	envNested  = "STRATA_TEST_NESTED" // allows nested, which takes minutes
)

const patience = 12 * time.Minute // emulated emulation is slow

// TestVSock reaches a VM over vsock. On a host without it, make test-vsock does that in a VM which has it.
func TestVSock(t *testing.T) {
	img := vmm.BootImage{Kernel: os.Getenv(envKernel), Initrd: os.Getenv(envInitrd),
		Cmdline: strings.Fields(os.Getenv(envCmdline))}
	disk := os.Getenv(envDisk)
	// In a VM the clock of the inner one goes with its instructions: by that of the wall it would do little
	// else than handle the ticks.
	rewrite := func(args []string) []string { return append(args, "-icount", "shift=5") }
	if disk == "" {
		rewrite = nil
		dev, err := openVSock()
		if err != nil && os.Getenv(envNested) == "" {
			t.Skipf("%v; make test-vsock runs this in a VM that has it", err)
		}
		inVM := err != nil
		if dev != nil {
			dev.f.Close()
		}
		img = image(t)
		busybox, err := exec.LookPath("busybox")
		treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
		disk = ext4File(t, t.TempDir(), 1, 4<<20, busybox)
		if inVM {
			nested(t, img, disk)
			return
		}
	}
	leaktest.Check(t)
	t.Run("no driver", testNoDriver)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := time.Now()
	c := Config{Dir: t.TempDir(), ID: "test", rewrite: rewrite, Kernel: img.Kernel, Initrd: img.Initrd,
		Cmdline: img.Cmdline, ExecPorts: 1}
	m, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	t.Logf("ready after %s", time.Since(begin).Round(time.Millisecond))
	if info, err := Inspect(m.dir); err != nil || info.Transport != TransportVSock {
		t.Fatalf("%+v %v", info, err)
	}
	mount := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Path: disk, ReadOnly: true},
		Mount: vmm.MappedDisk{MountPath: "/run/b", ReadOnly: true}}
	if err := m.Apply(ctx, mount); err != nil {
		t.Fatal(err)
	}

	t.Run("hosts at once", func(t *testing.T) {
		var hosts sync.WaitGroup
		for range 3 {
			s, err := OpenExec(ctx, m.dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			hosts.Go(func() {
				checkStreams(ctx, t, s, 200<<10)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		hosts.Go(func() { checkStreams(ctx, t, m, 1<<20) })
		hosts.Wait()
	})
	t.Run("killed host", func(t *testing.T) { testKilledHost(ctx, t, m) })
	t.Run("stranger", func(t *testing.T) {
		desc, err := readDescription(m.dir)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := gcs.DialVSock(ctx, desc.CID, gcs.NewToken())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if b, err := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("who does not know the token gets %q, %v", b, err)
		}
	})
	t.Run("stopped guest", func(t *testing.T) {
		if err := unix.Kill(m.proc.pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := OpenExec(limited, m.dir, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("OpenExec: %v", err)
		}
		go func() {
			time.Sleep(3 * time.Second) // more than the kernel waits
			_ = unix.Kill(m.proc.pid, unix.SIGCONT)
		}()
		s, err := OpenExec(ctx, m.dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		checkStreams(ctx, t, s, 1<<10)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("opened again", func(t *testing.T) {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if m, err = Open(ctx, m.dir, nil); err != nil {
			t.Fatal(err)
		}
		obs, err := m.Observe(ctx)
		if err != nil || obs.Mount(mount.Mount) == nil {
			t.Errorf("the machine has %v %v", obs, err)
		}
		for _, c := range []vmm.Change{mount.Inverse(), mount} {
			if err := m.Apply(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("killed guest", func(t *testing.T) {
		p, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{"/run/b/busybox", "yes"}, Stdout: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(m.proc.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(ctx); err == nil {
			t.Error("the program ended well")
		}
		if err := m.Ready(ctx); !errors.Is(err, vmm.ErrGone) {
			t.Errorf("Ready: %v", err)
		}
		_ = p.Close()
	})
}

// checkStreams sends bytes to a program that sends them back.
func checkStreams(ctx context.Context, t *testing.T, r runner, size int) {
	in, out := make([]byte, size), &bytes.Buffer{}
	_, _ = rand.Read(in) // never fails
	p, err := r.Exec(ctx, vmm.ProcessSpec{Args: []string{"/run/b/busybox", "cat"}, Stdin: bytes.NewReader(in),
		Stdout: out})
	if err != nil {
		t.Error(err)
		return
	}
	code, err := p.Wait(ctx)
	if err := errors.Join(err, p.Close()); err != nil || code != 0 || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("exit code %d, %v; %d of %d bytes came back, or others", code, err, out.Len(), size)
	}
}

// testKilledHost: a host process that is killed while it sends and receives takes its program with it,
// and nothing else.
func testKilledHost(ctx context.Context, t *testing.T, m *Machine) {
	host := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^TestVSockHost$", "-test.v")
	host.Env = append(os.Environ(), envHost+"="+m.dir)
	out, err := host.StdoutPipe()
	if err == nil {
		err = host.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for b := make([]byte, 1<<10); !strings.Contains(said.String(), "streams"); {
		n, err := out.Read(b)
		said.Write(b[:n])
		if err != nil {
			t.Fatalf("the other host ended: %v\n%s", err, &said)
		}
	}
	if list, _ := run(t, m, "/run/b/busybox", "ps"); !strings.Contains(list, "busybox cat") {
		t.Errorf("the program of the other host is not to be seen:\n%s", list)
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait() // it was killed
	for {
		list, code := run(t, m, "/run/b/busybox", "ps")
		if code != 0 {
			t.Fatalf("ps: exit code %d, %s", code, list)
		}
		if !strings.Contains(list, "busybox cat") {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the program of the killed host runs on:\n%s", list)
		}
		time.Sleep(time.Second)
	}
	checkStreams(ctx, t, m, 1<<10)
}

// TestVSockHost is the other host process of testKilledHost.
func TestVSockHost(t *testing.T) {
	dir := os.Getenv(envHost)
	if dir == "" {
		t.Skip("it is run by TestVSock, as a program of its own")
	}
	s, err := OpenExec(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, send := io.Pipe()
	receive, out := io.Pipe()
	if _, err := s.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"/run/b/busybox", "cat"}, Stdin: in,
		Stdout: out}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := send.Write(b); err != nil {
				return
			}
		}
	}()
	if _, err := io.CopyN(io.Discard, receive, 256<<10); err != nil {
		t.Fatal(err)
	}
	t.Log("streams")
	_, err = io.Copy(io.Discard, receive)
	t.Fatalf("it was not killed: %v", err)
}

// testNoDriver: a guest that is ready and does not answer over vsock is reached by serial ports, unless
// it is to be vsock.
func testNoDriver(t *testing.T) {
	g := &fakeGuest{}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: filepath.Join(t.TempDir(), "vm"), Kernel: kernel, Accel: AccelTCG, connect: g.connect,
		rewrite: func(args []string) []string {
			i := slices.Index(args, "-kernel")
			return append(args[:i], "-S")
		}}
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	if info, err := Inspect(c.Dir); err != nil || info.Transport != TransportSerial {
		t.Errorf("%+v %v", info, err)
	}
	if err := m.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	c.Dir, c.Transport = filepath.Join(t.TempDir(), "vm"), TransportVSock
	limited, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := Start(limited, c); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "vmw_vsock_virtio_transport") {
		t.Errorf("vsock without a driver: %v", err)
	}
}
