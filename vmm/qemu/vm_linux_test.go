package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/vmm"
)

// realVM boots a machine with our agent.
func realVM(t testing.TB, img vmm.BootImage) *Machine {
	t.Helper()
	c := Config{Dir: t.TempDir(), ID: "test", Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline, ExecPorts: 2}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	begin := time.Now()
	m, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s (%s)", time.Since(begin).Round(time.Millisecond), m.desc.Accel)
	t.Cleanup(func() { end(t, m) })
	return m
}

type runner interface {
	Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error)
}

func run(t testing.TB, r runner, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	p, err := r.Exec(ctx, vmm.ProcessSpec{Args: args, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	return out.String() + errs.String(), code
}

// image builds what real VMs boot.
func image(t testing.TB) vmm.BootImage {
	t.Helper()
	needQEMU(t)
	return bootimagetest.Image(t)
}

// resident is the memory of this process in bytes.
func resident(t testing.TB) int {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestVM(t *testing.T) {
	m := realVM(t, image(t))
	dir := t.TempDir()
	say := filepath.Join(dir, "say")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", say, "./testdata/say")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	t.Run("composite disk", func(t *testing.T) {
		layer := ext4File(t, dir, 7, 4<<20, say)
		// A file system in the middle of zeroes, as a partition is; here the guest only reads bytes.
		d := vmm.SCSIDisk{Controller: 2, LUN: 40, Path: "composite", ReadOnly: true,
			Extents: []vmm.Extent{{Path: layer, Length: 1 << 19}, {Path: layer, Offset: 1 << 19, Length: 7 << 19},
				{Length: 1 << 20}}}
		both := vmm.Change{Op: vmm.Add, Device: d,
			Mount: vmm.MappedDisk{Controller: 2, LUN: 40, MountPath: "/run/c", ReadOnly: true}}
		apply(t, m, both)
		checkName(t, m, "/run/c", 7)
		apply(t, m, both.Inverse())
	})
	t.Run("persistent memory", func(t *testing.T) {
		both := vmm.Change{Op: vmm.Add, Mount: vmm.MappedPMEM{Slot: 5, MountPath: "/run/p"},
			Device: vmm.VPMEMDevice{Slot: 5, Path: ext4File(t, dir, 5, 4<<20, say)}}
		for range 2 { // retained in between
			apply(t, m, both)
			checkName(t, m, "/run/p", 5)
			apply(t, m, both.GuestOnly().Inverse())
		}
		obs, err := m.Observe(t.Context())
		if err != nil || len(obs.Mounts) != 0 || obs.Device("vpmem 5") == nil {
			t.Errorf("the machine has %v", obs)
		}
	})
	t.Run("programs of another process", func(t *testing.T) {
		both := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 1, Path: ext4File(t, dir, 1, 4<<20, say), ReadOnly: true},
			Mount: vmm.MappedDisk{LUN: 1, MountPath: "/run/e", ReadOnly: true}}
		apply(t, m, both)
		s, err := OpenExec(t.Context(), m.dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		checkName(t, s, "/run/e", 1)
		checkName(t, m, "/run/e", 1) // and the controlling process at the same time
		apply(t, m, both.Inverse())
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("opened again", func(t *testing.T) {
		d := vmm.SCSIDisk{LUN: 3, Path: ext4File(t, dir, 3, 1<<20), ReadOnly: true}
		both := vmm.Change{Op: vmm.Add, Device: d, Mount: vmm.MappedDisk{LUN: 3, MountPath: "/run/o", ReadOnly: true}}
		apply(t, m, both)
		var obs vmm.Observation
		m, obs = reopened(t, m)
		if was := obs.Device("scsi 0:3"); was == nil || was.String() != d.String() || obs.Mount(both.Mount) == nil {
			t.Errorf("the machine has %v", obs)
		}
		apply(t, m, both.Inverse())
	})
	// The figure of the whole test process, which is more than that of a VM's owner.
	r := resident(t)
	t.Logf("this process takes %d MiB", r>>20)
	if residentLimit > 0 && r > residentLimit {
		t.Errorf("this process takes %d MiB, more than %d", r>>20, residentLimit>>20)
	}
	dead := m.dir
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Err(); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "powered off") {
		t.Errorf("reason: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Inspect(dead); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("after the end: %v", err)
	}
}

// checkName runs the program say of a file system that ext4File made.
func checkName(t testing.TB, r runner, mount string, n int) {
	t.Helper()
	out, code := run(t, r, mount+"/say")
	if want := fmt.Sprintf("layer %d\n", n); out != want || code != 0 {
		t.Errorf("%s/say says %q, exit code %d; want %q", mount, out, code, want)
	}
}
