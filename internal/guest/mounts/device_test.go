//go:build linux

package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// fakeSCSI creates the part of sysfs that devices looks at: two virtio-scsi hosts, numbered against the
// order of their PCI addresses, and one of another kind.
func fakeSCSI(t *testing.T, sys string) {
	t.Helper()
	for n, h := range map[int]struct{ pci, driver string }{
		0: {"0000:00:01.1", "ata_piix"}, 5: {"0000:00:03.0", "virtio_scsi"}, 2: {"0000:00:03.1", "virtio_scsi"},
	} {
		dir := fmt.Sprintf("%s/devices/pci0000:00/%s/virtio%d/host%d/scsi_host/host%d", sys, h.pci, n, n, n)
		write(t, dir+"/proc_name", h.driver+"\n", 0o644)
		write(t, dir+"/scan", "", 0o644)
		link(t, dir, fmt.Sprintf("%s/class/scsi_host/host%d", sys, n))
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	rel, err := filepath.Rel(filepath.Dir(name), target)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(rel, name); err != nil {
		t.Fatal(err)
	}
}

func TestFindDisk(t *testing.T) {
	dir := t.TempDir()
	d := &Devices{Sys: dir + "/sys", Dev: dir + "/dev", Events: &Uevents{wake: make(chan struct{})}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.disk(ctx, 0, 3, 0); !errors.Is(err, gcsserver.ErrNotFound) {
		t.Fatalf("without any controller: %v", err)
	}
	fakeSCSI(t, d.Sys)
	if _, err := d.disk(ctx, 2, 0, 0); !errors.Is(err, gcsserver.ErrNotFound) || !strings.Contains(err.Error(), "2:0") {
		t.Fatalf("a controller too many: %v", err)
	}
	// The disk comes while somebody waits for it, and its partition later still.
	type found struct {
		node string
		err  error
	}
	whole, part := make(chan found, 1), make(chan found, 1)
	go func() { n, err := d.disk(t.Context(), 1, 3, 0); whole <- found{n, err} }()
	go func() { n, err := d.disk(t.Context(), 1, 3, 2); part <- found{n, err} }()
	write(t, d.Sys+"/bus/scsi/devices/5:0:0:3/block/sdx/size", "1", 0o644) // the other controller
	disk := d.Sys + "/bus/scsi/devices/2:0:0:3/block/sdq"
	write(t, disk+"/size", "1", 0o644)
	d.Events.notify()
	write(t, d.Dev+"/sdq", "", 0o644)
	write(t, d.Dev+"/sdx", "", 0o644)
	d.Events.notify()
	if got := <-whole; got.err != nil || got.node != d.Dev+"/sdq" {
		t.Fatalf("disk 1:3 is %+v", got)
	}
	write(t, disk+"/sdq1/partition", "1\n", 0o644)
	write(t, disk+"/sdq7/partition", "2\n", 0o644)
	write(t, d.Dev+"/sdq7", "", 0o644)
	d.Events.notify()
	if got := <-part; got.err != nil || got.node != d.Dev+"/sdq7" {
		t.Fatalf("partition 2 is %+v", got)
	}
	if err := d.eject(1, 9); err != nil {
		t.Errorf("eject of a disk that is not there: %v", err)
	}
	write(t, filepath.Dir(filepath.Dir(disk))+"/delete", "", 0o644)
	if err := d.eject(1, 3); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Dir(filepath.Dir(disk)) + "/delete"); string(b) != "1\n" {
		t.Errorf("the kernel was told %q", b)
	}
	write(t, disk+"2/size", "1", 0o644)
	if _, err := d.disk(t.Context(), 1, 3, 0); !errors.Is(err, gcsserver.ErrInvalid) {
		t.Errorf("two block devices for one disk: %v", err)
	}
}

func TestPMEMSlots(t *testing.T) {
	dir := t.TempDir()
	// Hot-added in the order of slots 2, 0, 1: the kernel's numbers follow that order.
	for n, slot := range []int{2, 0, 1} {
		region := fmt.Sprintf("%s/sys/devices/pci0000:00/0000:00:%02x.0/virtio%d/ndbus%d/region%d", dir, 4+slot, 20-n, n, n)
		write(t, region+"/resource", fmt.Sprintf("%#x\n", 0x140000000+slot*0x10000000), 0o644)
		write(t, fmt.Sprintf("%s/namespace%d.0/block/pmem%d/size", region, n, n), "1", 0o644)
		link(t, fmt.Sprintf("%s/namespace%d.0/block/pmem%d", region, n, n), fmt.Sprintf("%s/sys/block/pmem%d", dir, n))
		write(t, fmt.Sprintf("%s/dev/pmem%d", dir, n), "", 0o644)
	}
	for _, word := range []string{"pci:0000:00:04.0", "0x140000000,0x10000000", ""} {
		rule, err := ParsePMEM(word)
		if err != nil {
			t.Fatal(err)
		}
		d := &Devices{Sys: dir + "/sys", Dev: dir + "/dev", PMEM: rule}
		for slot, want := range []string{"pmem1", "pmem2", "pmem0"} {
			if got, err := d.lookPMEM(uint32(slot)); err != nil || filepath.Base(got) != want {
				t.Errorf("%q: slot %d is %s, %v; want %s", word, slot, got, err, want)
			}
		}
		if _, err := d.lookPMEM(3); !errors.Is(err, errAbsent) {
			t.Errorf("%q: slot 3: %v", word, err)
		}
	}
	for _, bad := range []string{"x", "1,0", "pci:", "pci:0000:00:zz.0", "0x1"} {
		if _, err := ParsePMEM(bad); err == nil {
			t.Errorf("strata.pmem=%s is accepted", bad)
		}
	}
}

// diskIn puts an image behind a loop device into the fake sysfs of a runtime, as disk 0:lun.
func diskIn(t *testing.T, r *testGuest, lun int, image string) {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		lacking(t, fmt.Sprintf("loop devices are needed: %v: %s", err, out))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	write(t, fmt.Sprintf("%s/bus/scsi/devices/5:0:0:%d/block/%s/size", r.devices.Sys, lun, filepath.Base(dev)), "1", 0o644)
}

func tool(t *testing.T, pkg, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		lacking(t, fmt.Sprintf("%s is needed: apt-get install %s", name, pkg))
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func TestMountDisks(t *testing.T) {
	r := testRuntime(t)
	fakeSCSI(t, r.devices.Sys)
	src := r.base + "/src"
	write(t, src+"/hello", "world", 0o644)
	image := func(name string) string {
		p := r.base + "/" + name
		if f, err := os.Create(p); err != nil {
			t.Fatal(err)
		} else if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ext4, blank := image("ext4.img"), image("blank.img")
	tool(t, "e2fsprogs", "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", src, ext4)
	erofs := r.base + "/erofs.img"
	tool(t, "erofs-utils", "mkfs.erofs", "--quiet", erofs, src)
	diskIn(t, r, 0, ext4)
	diskIn(t, r, 1, erofs)
	diskIn(t, r, 2, blank)

	for lun, name := range []string{"ext4", "erofs"} {
		s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/mounts/" + name, Lun: uint8(lun), ReadOnly: true,
			Options: []string{"ro", "rshared"}}
		err := r.try(t, "Add", "MappedVirtualDisk", s)
		if name == "erofs" && errors.Is(err, unix.ENODEV) {
			t.Log("this kernel has no EROFS")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r.must(t, "Add", "MappedVirtualDisk", s)
		if b, err := os.ReadFile(s.MountPath + "/hello"); err != nil || string(b) != "world" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if err := os.WriteFile(s.MountPath+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s can be written: %v", name, err)
		}
		other := s
		other.Lun = 2
		if err := r.try(t, "Add", "MappedVirtualDisk", other); !errors.Is(err, gcsserver.ErrExists) {
			t.Errorf("another disk at the same path: %v", err)
		}
		if err := r.try(t, "Remove", "SCSIDevice", hcsschema.SCSIDevice{Lun: uint8(lun)}); !errors.Is(err,
			gcsserver.ErrBusy) {
			t.Errorf("eject of a mounted disk: %v", err)
		}
		r.must(t, "Remove", "MappedVirtualDisk", other) // is not there, so is gone
		if len(r.real()) != 1 {
			t.Fatal("the removal of another disk took this one away")
		}
		r.must(t, "Remove", "MappedVirtualDisk", hcsschema.LCOWMappedVirtualDisk{MountPath: s.MountPath, Lun: uint8(lun)})
		if _, err := os.Lstat(s.MountPath); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", s.MountPath, err)
		}
	}

	scratch := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/gcs/c/x", Lun: 2}
	if err := r.try(t, "Add", "MappedVirtualDisk", scratch); err == nil ||
		!strings.Contains(err.Error(), "no file system") {
		t.Errorf("a blank disk: %v", err)
	}
	if _, err := os.Lstat(scratch.MountPath); !os.IsNotExist(err) {
		t.Errorf("a failed mount leaves its directory: %v", err)
	}
	scratch.EnsureFilesystem, scratch.Filesystem = true, "ext4"
	r.must(t, "Add", "MappedVirtualDisk", scratch)
	write(t, scratch.MountPath+"/kept", "x", 0o644)
	r.must(t, "Remove", "MappedVirtualDisk", scratch)
	r.must(t, "Add", "MappedVirtualDisk", scratch)
	if b, err := os.ReadFile(scratch.MountPath + "/kept"); err != nil || string(b) != "x" {
		t.Errorf("formatted the second time, too: %v", err)
	}
	r.must(t, "Remove", "MappedVirtualDisk", scratch)

	bad := []hcsschema.LCOWMappedVirtualDisk{
		{MountPath: r.base + "/b", Encrypted: true}, {MountPath: r.base + "/b", Filesystem: "ntfs"},
		{MountPath: r.base + "/b", EnsureFilesystem: true, Filesystem: "ext4", ReadOnly: true},
		{MountPath: r.base + "/b", VerityInfo: &hcsschema.DeviceVerityInfo{}},
		{MountPath: r.base + "/b", ReadOnly: true,
			VerityInfo: &hcsschema.DeviceVerityInfo{RootDigest: "zz", Ext4SizeInBytes: 4096}},
		{MountPath: "/etc/b"}, {MountPath: r.base + "/b", Lun: 2, Filesystem: "xfs"},
	}
	for _, s := range bad {
		if err := r.try(t, "Add", "MappedVirtualDisk", s); err == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
	s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/block/dev", Lun: 0, BlockDev: true}
	r.must(t, "Add", "MappedVirtualDisk", s)
	if to, err := os.Readlink(s.MountPath); err != nil || !strings.HasPrefix(to, "/dev/loop") {
		t.Errorf("block device link to %q, %v", to, err)
	}
	r.must(t, "Remove", "MappedVirtualDisk", s)
	if len(r.real()) != 0 {
		t.Errorf("left: %v", r.real())
	}
}

// TestMountsWaitForChanges: who asks what is mounted hears the outcome of what is under way, whoever
// asked for that.
func TestMountsWaitForChanges(t *testing.T) {
	r := testRuntime(t)
	s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/m", Lun: 5}
	added := make(chan error, 1)
	go func() { added <- r.try(t, "Add", "MappedVirtualDisk", s) }()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		r.targets.mu.Lock()
		waiting = len(r.targets.held) != 0
		r.targets.mu.Unlock()
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Mounts(over); !errors.Is(err, gcsserver.ErrBusy) {
		t.Errorf("while a disk is added: %v", err)
	}
	heard := make(chan error, 1)
	go func() {
		_, err := r.Mounts(t.Context())
		heard <- err
	}()
	r.must(t, "Remove", "MappedVirtualDisk", s)
	if err := <-heard; err != nil {
		t.Errorf("afterwards: %v", err)
	}
	<-added
	if _, err := r.Mounts(over); err != nil {
		t.Errorf("when nothing is under way: %v", err)
	}
}

// TestRemoveEndsWaitingAdd: an Add that waits for its device gives way to the Remove.
func TestRemoveEndsWaitingAdd(t *testing.T) {
	r := testRuntime(t)
	s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/m", Lun: 5}
	added := make(chan error, 1)
	go func() { added <- r.try(t, "Add", "MappedVirtualDisk", s) }()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		r.targets.mu.Lock()
		l := r.targets.held["path "+s.MountPath]
		waiting = l != nil && l.cancel != nil
		r.targets.mu.Unlock()
	}
	r.must(t, "Remove", "MappedVirtualDisk", s)
	if err := <-added; !errors.Is(err, gcsserver.ErrNotFound) {
		t.Errorf("the Add ends with %v", err)
	}
	if len(r.targets.held) != 0 {
		t.Error("a lock is left")
	}
}

func TestVerityParams(t *testing.T) {
	got, err := verityParams("/dev/sda",
		hcsschema.DeviceVerityInfo{Ext4SizeInBytes: 8192, RootDigest: "ab", SuperBlock: true})
	if want := "1 /dev/sda /dev/sda 4096 4096 2 3 sha256 ab -"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for _, bad := range []hcsschema.DeviceVerityInfo{
		{Ext4SizeInBytes: 4097, RootDigest: "ab"}, {Ext4SizeInBytes: 4096},
		{Ext4SizeInBytes: 4096, RootDigest: "ab", Salt: "x"},
		{Ext4SizeInBytes: -4096, RootDigest: "ab"}, {Ext4SizeInBytes: 4096, RootDigest: "ab", BlockSize: 100},
		{Ext4SizeInBytes: 4096, RootDigest: "ab", Algorithm: "sha256 1 evil"},
	} {
		if got, err := verityParams("/dev/sda", bad); err == nil {
			t.Errorf("%+v gives %q", bad, got)
		}
	}
}
