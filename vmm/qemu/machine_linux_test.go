package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// diskFile creates a file of size bytes, as a fixed VHD where its name says so.
func diskFile(t testing.TB, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	var b bytes.Buffer
	if strings.HasSuffix(name, ".vhd") {
		if err := vhd.WriteFooter(&b, size); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, append(make([]byte, size), b.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func add(d vmm.Device) vmm.Change    { return vmm.Change{Op: vmm.Add, Device: d} }
func remove(d vmm.Device) vmm.Change { return vmm.Change{Op: vmm.Remove, Device: d} }

func apply(t testing.TB, m vmm.Machine, c vmm.Change) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Apply(ctx, c); err != nil {
		t.Fatal(err)
	}
}

func devices(t testing.TB, m vmm.Machine) []string {
	t.Helper()
	obs, err := m.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range obs.Devices {
		out = append(out, d.String())
	}
	slices.Sort(out)
	return out
}

// Names that would end an option, a string or a line, if a path were ever put into one.
var oddNames = []string{"plain.vhd", "comma,readonly=off.vhd", `quo"te.vhd`, "sp ace.vhd", "new\nline.vhd",
	"per%cent.vhd",
	`back\slash.vhd`, "colon:nbd:x.vhd", "ümlaut.vhd", strings.Repeat("long", 50) + ".vhd"}

func TestDisksOfAllNamesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	leaktest.Check(t)
	m, g, _ := bare(t)
	for i, name := range oddNames {
		path := diskFile(t, dir, name, 1<<20)
		d := vmm.SCSIDisk{Controller: uint8(i % 4), LUN: uint8(i), Path: path, ReadOnly: true}
		apply(t, m, add(d))
		apply(t, m, add(d)) // the same again
		if got := devices(t, m); len(got) != 1 || got[0] != d.String() {
			t.Errorf("after adding %q the machine has %q", name, got)
		}
		other := d
		other.ReadOnly = false
		if err := m.Apply(t.Context(), add(other)); !errors.Is(err, vmm.ErrOccupied) {
			t.Errorf("another disk at the same address: %v", err)
		}
		apply(t, m, remove(d))
		apply(t, m, remove(d)) // nothing there
		if got := devices(t, m); len(got) != 0 {
			t.Errorf("after removing %q the machine has %q", name, got)
		}
	}
	if left, err := os.ReadDir(m.attachedDir()); err != nil || len(left) != 0 {
		t.Errorf("left in the state directory: %v %v", left, err)
	}
	nodes, err := m.nodes(t.Context(), "")
	if err != nil || len(nodes) != 0 {
		t.Errorf("left open in QEMU: %v %v", nodes, err)
	}
	for _, r := range g.requests() {
		if r != "Remove SCSIDevice" {
			t.Errorf("the guest was asked: %s", r)
		}
	}
}

func TestDisksThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	m, _, _ := bare(t)
	dynamic := filepath.Join(dir, "dynamic.vhd")
	footer := vhd.Footer{Type: vhd.Dynamic, Size: 1 << 20}
	if err := os.WriteFile(dynamic, footer.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
	truncated := diskFile(t, dir, "truncated.vhd", 1<<20)
	if err := os.Truncate(truncated, 1<<19); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe.vhd")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := diskFile(t, dir, "data.raw", 1<<20)
	zero := diskFile(t, dir, "zero.raw", 0)
	for name, tc := range map[string]struct {
		d    vmm.Device
		want string
		is   error
	}{
		"missing": {vmm.SCSIDisk{Path: filepath.Join(dir, "nothing.vhd"), ReadOnly: true}, "nothing.vhd",
			os.ErrNotExist},
		"dynamic":      {vmm.SCSIDisk{Path: dynamic, ReadOnly: true}, "fixed", vhd.ErrNotFixed},
		"truncated":    {vmm.SCSIDisk{Path: truncated, ReadOnly: true}, "truncated", vhd.ErrNotVHD},
		"pipe":         {vmm.SCSIDisk{Path: pipe, ReadOnly: true}, "pipe.vhd", nil},
		"directory":    {vmm.SCSIDisk{Path: dir, ReadOnly: true}, "not a disk image", nil},
		"empty":        {vmm.SCSIDisk{Path: zero, ReadOnly: true}, "empty", nil},
		"relative":     {vmm.SCSIDisk{Path: "layer.vhd", ReadOnly: true}, "absolute", nil},
		"not UTF-8":    {vmm.SCSIDisk{Path: dir + "/\xff.vhd", ReadOnly: true}, "UTF-8", nil},
		"no VHDX":      {vmm.SCSIDisk{Path: raw, Format: vmm.FormatVHDX}, "create it again", vhd.ErrNotVHDX},
		"controller 4": {vmm.SCSIDisk{Controller: 4, Path: raw}, "4 controllers", nil},
		"LUN 64":       {vmm.SCSIDisk{LUN: 64, Path: raw}, "64 LUNs", nil},
		"pass-through": {vmm.SCSIDisk{Path: raw, Kind: vmm.PassThru}, "no block device", nil},
		"evd": {vmm.SCSIDisk{Path: raw, Kind: vmm.ExtensibleVirtualDisk}, "ExtensibleVirtualDisk",
			errors.ErrUnsupported},
		"writable extent": {vmm.SCSIDisk{Extents: []vmm.Extent{{Length: 512}}}, "read-only", nil},
		"short extent": {vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{{Path: raw, Offset: 1 << 19, Length: 1 << 20}}},
			"truncated", nil},
		"odd extent": {vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{{Path: raw, Length: 100}}}, "multiples", nil},
		"no extent":  {vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{}}, "at least one", nil},
		"odd pmem":   {vmm.VPMEMDevice{Path: raw}, "SCSI", vmm.ErrNotPluggable},
		"slot 16":    {vmm.VPMEMDevice{Slot: 16, Path: raw}, "16 slots", nil},
		"VSMB":       {vmm.VSMBShare{Name: "s", Path: dir}, "vsmb", errors.ErrUnsupported},
		"Plan 9":     {vmm.Plan9Share{Name: "s", Path: dir}, "plan9", errors.ErrUnsupported},
	} {
		err := m.Apply(t.Context(), add(tc.d))
		host, _ := vmm.Outcomes(add(tc.d), err)
		if err == nil || host != vmm.NotDone || !strings.Contains(err.Error(), tc.want) || tc.is != nil &&
			!errors.Is(err, tc.is) {
			t.Errorf("%s: host %s, error %v; want one about %q matching %v", name, host, err, tc.want, tc.is)
		}
	}
	if got := devices(t, m); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if left, err := os.ReadDir(m.attachedDir()); err != nil || len(left) != 0 {
		t.Errorf("left in the state directory: %v %v", left, err)
	}
}

func TestDiskOfAnotherMachineIsSharedOrLocked(t *testing.T) {
	dir := t.TempDir()
	a, _, _ := bare(t)
	b, _, _ := bare(t)
	layer, scratch := diskFile(t, dir, "layer.vhd", 1<<20), diskFile(t, dir, "scratch.raw", 1<<20)
	for _, m := range []*Machine{a, b} {
		apply(t, m, add(vmm.SCSIDisk{Path: layer, ReadOnly: true}))
		apply(t, m, add(vmm.SCSIDisk{LUN: 1, Path: layer, ReadOnly: true}))
	}
	apply(t, a, add(vmm.SCSIDisk{LUN: 2, Path: scratch}))
	err := b.Apply(t.Context(), add(vmm.SCSIDisk{LUN: 2, Path: scratch}))
	if !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), "another VM") {
		t.Errorf("a scratch of two machines: %v", err)
	}
}

func TestCompositeDisk(t *testing.T) {
	dir := t.TempDir()
	m, _, _ := bare(t)
	a := diskFile(t, dir, "a,\"\n.raw", 1<<20)
	d := vmm.SCSIDisk{Controller: 1, LUN: 63, Path: "three layers", ReadOnly: true, Extents: []vmm.Extent{
		{Length: 1 << 20}, {Path: a, Offset: 512, Length: 1024}, {Length: 512}, {Path: a, Length: 1 << 20},
	}}
	apply(t, m, add(d))
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := m.qmp.do(t.Context(), "query-named-block-nodes", map[string]any{"flat": false}, &nodes); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "scsi1-63-") {
			if found = true; n.Image.Size != 2<<20+1024+512 {
				t.Errorf("QEMU sees %d bytes", n.Image.Size)
			}
		}
	}
	if !found {
		t.Errorf("QEMU has no node for the disk: %v", nodes)
	}
	if got := devices(t, m); len(got) != 1 || got[0] != d.String() {
		t.Errorf("the machine has %q", got)
	}
	apply(t, m, remove(d))
	if left, err := os.ReadDir(m.attachedDir()); err != nil || len(left) != 0 {
		t.Errorf("left in the state directory: %v %v", left, err)
	}
}

// TestManyExtents: QEMU may open as many files as the host's hard limit lets it.
func TestManyExtents(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// Setting it also ends Go's habit of giving children the limit that it found itself.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	m, _, _ := bare(t)
	path := diskFile(t, t.TempDir(), "a.raw", 1<<20)
	d := vmm.SCSIDisk{LUN: 7, Path: "many", ReadOnly: true}
	for i := range int64(300) {
		d.Extents = append(d.Extents, vmm.Extent{Path: path, Offset: i * 512, Length: 512})
	}
	apply(t, m, add(d))
	apply(t, m, remove(d))
	if nodes, err := m.nodes(t.Context(), ""); err != nil || len(nodes) != 0 {
		t.Errorf("left open in QEMU: %v %v", nodes, err)
	}
}

// TestNodeOfARecord: to detach a disk QEMU need not list all that it has open.
func TestNodeOfARecord(t *testing.T) {
	m := &Machine{dir: t.TempDir()} // it has no QEMU to ask
	name, err := m.record("scsi0-1", vmm.SCSIDisk{LUN: 1, Path: "/x"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.namesOf(t.Context(), "scsi0-1"); err != nil || len(got) != 1 || got[0] != name {
		t.Errorf("%q %v, want %q", got, err, name)
	}
}

func TestPersistentMemoryIsRetained(t *testing.T) {
	dir := t.TempDir()
	m, _, c := bare(t)
	var want []string
	for i := range uint32(pmemDevices) {
		d := vmm.VPMEMDevice{Slot: i, Path: diskFile(t, dir, fmt.Sprintf("%d,x.vhd", i), 2<<20)}
		if m.desc.UID != 0 { // a file that only we may read is no persistent memory for QEMU as another user
			if err := m.Apply(t.Context(), add(d)); !errors.Is(err, vmm.ErrNotPluggable) {
				t.Fatalf("a file that QEMU may not read: %v, want one that matches ErrNotPluggable", err)
			}
			if err := os.Chmod(d.Path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, m, add(d))
		want = append(want, d.String())
	}
	slices.Sort(want)
	if got := devices(t, m); !slices.Equal(got, want) {
		t.Errorf("the machine has %q, want %q", got, want)
	}
	d := vmm.VPMEMDevice{Slot: 3, Path: filepath.Join(dir, "3,x.vhd")}
	apply(t, m, add(d))
	if err := m.Apply(t.Context(), remove(d)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("removing persistent memory: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := open(t.Context(), c.Dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := devices(t, again); !slices.Equal(got, want) {
		t.Errorf("after opening again the machine has %q", got)
	}
	apply(t, again, add(d)) // it is known to be the same
}

func TestOpenSweepsWhatAnInterruptedChangeLeft(t *testing.T) {
	dir := t.TempDir()
	m, _, c := bare(t)
	kept := vmm.SCSIDisk{LUN: 1, Path: diskFile(t, dir, "kept.vhd", 1<<20), ReadOnly: true}
	apply(t, m, add(kept))
	half := vmm.SCSIDisk{LUN: 2, Path: diskFile(t, dir, "half.vhd", 1<<20), ReadOnly: true}
	name, err := m.record("scsi0-2", half)
	if err != nil {
		t.Fatal(err)
	}
	node, err := diskNode(half, name, m.qmp.lender(t.Context(), name))
	if err == nil {
		err = m.qmp.do(t.Context(), "blockdev-add", node, nil)
	}
	if err == nil {
		err = m.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(t.Context(), c.Dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if nodes, err := again.nodes(t.Context(), "scsi0-2"); err != nil || len(nodes) != 0 {
		t.Errorf("left open in QEMU: %v %v", nodes, err)
	}
	apply(t, again, add(half))
	if got, want := devices(t, again), []string{kept.String(), half.String()}; !slices.Equal(got, want) {
		t.Errorf("the machine has %q, want %q", got, want)
	}
}

func TestGuestHalves(t *testing.T) {
	m, g, _ := bare(t)
	d := vmm.SCSIDisk{LUN: 5, Path: diskFile(t, t.TempDir(), "layer.vhd", 1<<20), ReadOnly: true}
	both := vmm.Change{Op: vmm.Add, Device: d, Mount: vmm.MappedDisk{LUN: 5, MountPath: "/m", ReadOnly: true}}

	g.setAnswer(func(hcsschema.GuestRequest) error { return &gcs.Error{Op: "mount", Message: "bad superblock"} })
	err := m.Apply(t.Context(), both)
	if host, guest := vmm.Outcomes(both, err); host != vmm.Done || guest != vmm.NotDone ||
		!strings.Contains(err.Error(), "bad superblock") {
		t.Errorf("refused mount: host %s, guest %s, %v", host, guest, err)
	}
	g.setAnswer(nil)
	apply(t, m, both)

	g.setAnswer(func(r hcsschema.GuestRequest) error {
		return &gcs.Error{Op: "unmount", Result: gcs.ResultBusy, Message: "pid 7"}
	})
	err = m.Apply(t.Context(), both.Inverse())
	if host, guest := vmm.Outcomes(both, err); host != vmm.NotDone || guest != vmm.NotDone ||
		!errors.Is(err, vmm.ErrBusy) {
		t.Errorf("busy unmount: host %s, guest %s, %v", host, guest, err)
	}
	if got := devices(t, m); len(got) != 1 {
		t.Errorf("a busy disk was detached: %q", got)
	}
	g.setAnswer(func(hcsschema.GuestRequest) error { return gcs.ErrClosed })
	err = m.Apply(t.Context(), both.Inverse())
	if _, guest := vmm.Outcomes(both, err); guest != vmm.Unknown || !errors.Is(err, vmm.ErrGuestUnreachable) {
		t.Errorf("lost connection: guest %s, %v", guest, err)
	}
	g.setAnswer(nil)
	apply(t, m, both.Inverse())
	if got := devices(t, m); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestAbandonedCallBlocksItsAddressOnly(t *testing.T) {
	m, g, _ := bare(t)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g.setAnswer(func(r hcsschema.GuestRequest) error {
		if s, ok := r.Settings.(hcsschema.LCOWMappedVirtualDisk); ok && s.MountPath == "/slow" {
			cancel() // not before the call is there
			<-release
		}
		return nil
	})
	slow := vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/slow"}}
	err := m.Apply(ctx, slow)
	if _, guest := vmm.Outcomes(slow, err); guest != vmm.Unknown || !errors.Is(err, context.Canceled) {
		t.Fatalf("guest %s, %v", guest, err)
	}
	apply(t, m, vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/other", LUN: 1}})
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = m.Apply(ctx, slow.Inverse())
	if _, guest := vmm.Outcomes(slow, err); guest != vmm.NotDone || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the address was not held: guest %s, %v", guest, err)
	}
	close(release)
	apply(t, m, slow.Inverse())
}
