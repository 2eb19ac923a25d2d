package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/vmm"
)

// smallHost is a file system of the host with little room, as a tmpfs.
type smallHost struct {
	t   testing.TB
	dir string
}

func newSmallHost(t testing.TB, mib int) smallHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root: sudo go test")
	}
	h := smallHost{t, t.TempDir()}
	if err := unix.Mount("tmpfs", h.dir, "tmpfs", 0, fmt.Sprintf("size=%dM", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(h.dir, 0); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h smallHost) resize(mib int) {
	h.t.Helper()
	if err := unix.Mount("", h.dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dM", mib)); err != nil {
		h.t.Fatal(err)
	}
}

// said is a log that tests read while it is written.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s: it takes too long", what)
		}
	}
}

// TestHostFull: a guest that writes while the host's disk is full is paused, not failed; whoever works
// with the machine says so, and lets it go on as soon as there is room. Nothing of what was written is lost.
func TestHostFull(t *testing.T) {
	img := image(t)
	host := newSmallHost(t, 40)
	disk := filepath.Join(host.dir, "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 512<<20); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(t.TempDir(), "fill")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", fill, "./testdata/fill")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	log := &said{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	c := Config{Dir: filepath.Join(t.TempDir(), "vm"), Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline,
		CPUs: 2, Accel: AccelTCG, Logger: logger}
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	apply(t, m, vmm.Change{Op: vmm.Add,
		Device: vmm.SCSIDisk{LUN: 1, ReadOnly: true, Path: ext4File(t, t.TempDir(), 1, 16<<20, fill)},
		Mount:  vmm.MappedDisk{LUN: 1, MountPath: "/run/tool", ReadOnly: true}})
	apply(t, m, vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 2, Path: disk},
		Mount: vmm.MappedDisk{LUN: 2, MountPath: "/run/data", Filesystem: "ext4", EnsureFilesystem: true}})

	paused := func() bool {
		info, err := Inspect(c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(info.Paused, "disk is full") && strings.Contains(info.Paused, disk)
	}
	write := func(r runner, name string, mib int) <-chan error {
		ended := make(chan error, 1)
		var errs bytes.Buffer
		p, err := r.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"/run/tool/fill", "/run/data/" + name, fmt.Sprint(mib)},
			Stderr: &errs})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			code, err := p.Wait(context.Background())
			if code != 0 {
				err = errors.Join(err, fmt.Errorf("exit code %d: %s", code, errs.String()))
			}
			ended <- errors.Join(err, p.Close())
		}()
		return ended
	}
	await := func(ended <-chan error) {
		t.Helper()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("the program does not end")
		}
	}

	ended := write(m, "a", 64)
	until(t, "the process that has the machine open says that the host is full", func() bool {
		return log.count("the host's disk is full") == 1
	})
	if !paused() {
		t.Error("Inspect does not say that the machine is paused")
	}
	host.resize(120)
	await(ended)
	if paused() || log.count("the VM goes on") == 0 { // QEMU may pause it more than once
		t.Error("the machine is paused, or nobody said that it goes on")
	}

	// The same where nobody has the machine open but a program runs in it.
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := OpenExec(t.Context(), c.Dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	before := log.count("the host's disk is full")
	ended = write(s, "b", 64)
	until(t, "the machine is paused", paused)
	until(t, "the process that runs a program says that the host is full", func() bool {
		return log.count("the host's disk is full") > before
	})
	// Opening it says what is wrong instead of waiting for an answer, and resumes it when there is room.
	if _, err := Open(t.Context(), c.Dir, logger); !errors.Is(err, vmm.ErrHostFull) ||
		!strings.Contains(err.Error(), disk) {
		t.Errorf("Open: %v, want one that matches ErrHostFull and names %s", err, disk)
	}
	host.resize(400)
	await(ended)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	again, err := Open(t.Context(), c.Dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
	if paused() {
		t.Error("the machine is still paused")
	}

	// A writable disk where there is no room is refused before the guest sees it.
	full := filepath.Join(newSmallHost(t, 8).dir, "full")
	if err := os.WriteFile(full, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	err = again.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 3, Path: full}})
	if ae, ok := errors.AsType[*vmm.ApplyError](err); !ok || ae.Host != vmm.NotDone || !errors.Is(err, vmm.ErrHostFull) {
		t.Errorf("a writable disk without room: %v, want one that matches ErrHostFull, not done", err)
	}
}
