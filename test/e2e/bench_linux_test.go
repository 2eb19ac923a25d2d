package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// BenchmarkBoot measures from nothing to a VM that answers.
func BenchmarkBoot(b *testing.B) {
	need(b, "qemu-system-x86_64", "qemu-system-x86")
	image := bootimagetest.Image(b)
	dir := filepath.Join(b.TempDir(), "vm")
	for b.Loop() {
		vm, err := strata.StartVM(b.Context(), strata.VMOptions{Dir: dir, Image: image})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := vm.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkMount measures mounting and unmounting in a real VM:
//
//   - cold: nothing of the layers is in the VM (with -benchtime 1x: persistent memory that was attached
//     once stays, so that a second round is warmer);
//   - warm: another container holds the layers;
//   - one-by-one: cold too, but in the reference's order of work: one layer after the other, each
//     step waited for, the host's half and the guest's half one by one, a device for each layer.
//
// A ratio is to one-by-one.
func BenchmarkMount(b *testing.B) {
	for _, n := range []int{1, 10, 40} {
		top, _ := stack(b, n)
		disk := scratch(b)
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			vm, _ := startVM(b)
			// The guest loads its drivers at first use; that is no part of what is compared.
			first, _ := stack(b, 1)
			release(b, mount(b, layers.Request{VM: vm, ID: "first", Layers: first, Scratch: disk}))
			var reference spent
			b.Run("one-by-one", func(b *testing.B) {
				reference = oneByOne(b, vm, top, disk)
				reference.report(b, reference)
			})
			b.Run("cold", func(b *testing.B) { mountAndRelease(b, vm, top, disk).report(b, reference) })
			b.Run("warm", func(b *testing.B) {
				holder := mount(b, layers.Request{VM: vm, ID: "holder", Layers: top})
				defer release(b, holder)
				mountAndRelease(b, vm, top, disk).report(b, reference)
			})
		})
	}
}

// spent is the time of one round of a benchmark.
type spent struct{ mount, unmount time.Duration }

// each is what a round took when s is the sum of all.
func (s spent) each(b *testing.B) spent {
	n := time.Duration(b.N)
	return spent{mount: s.mount / n, unmount: s.unmount / n}
}

// report reports what was spent, and as a ratio to something else; zero: a filter left it out.
func (s spent) report(b *testing.B, than spent) {
	b.ReportMetric(inMS(s.mount), "ms/mount")
	b.ReportMetric(inMS(s.unmount), "ms/unmount")
	b.ReportMetric(0, "ns/op") // the sum says nothing
	if than.mount > 0 {
		b.ReportMetric(float64(s.mount)/float64(than.mount), "×mount")
		b.ReportMetric(float64(s.unmount)/float64(than.unmount), "×unmount")
	}
}

func mountAndRelease(b *testing.B, vm *uvm.UtilityVM, top []layers.Layer, disk string) spent {
	var s spent
	for b.Loop() {
		start := time.Now()
		m := mount(b, layers.Request{VM: vm, ID: "bench", Layers: top, Scratch: disk})
		s.mount += time.Since(start)
		start = time.Now()
		release(b, m)
		s.unmount += time.Since(start)
	}
	return s.each(b)
}

// oneByOne does what the reference does, with the machine alone. It uses disks, as a VM's persistent
// memory stays attached and would make the second round a warm one.
func oneByOne(b *testing.B, vm *uvm.UtilityVM, top []layers.Layer, scratchDir string) spent {
	ctx, m := b.Context(), vm.Machine()
	var s spent
	for b.Loop() {
		var changes []vmm.Change
		add := func(d vmm.Device, g vmm.Mount) {
			changes = append(changes, vmm.Change{Op: vmm.Add, Device: d}, vmm.Change{Op: vmm.Add, Mount: g})
		}
		combined := vmm.CombinedLayers{ContainerID: "bench", RootPath: "/run/gcs/c/bench/rootfs",
			ScratchPath: "/run/gcs/c/bench/scratch/bench"}
		for i, l := range top {
			controller, lun := uint8((i+1)/64), uint8((i+1)%64)
			path := fmt.Sprintf("/run/mounts/one%d", i)
			add(vmm.SCSIDisk{Controller: controller, LUN: lun, Path: filepath.Join(l.Folder, layerdir.VHD.FileName()),
				ReadOnly: true},
				vmm.MappedDisk{MountPath: path, Controller: controller, LUN: lun, ReadOnly: true, Filesystem: "ext4"})
			combined.Layers = append(combined.Layers, vmm.GuestLayer{Path: path})
		}
		add(vmm.SCSIDisk{Path: filepath.Join(scratchDir, layerdir.ScratchName)},
			vmm.MappedDisk{MountPath: "/run/gcs/c/bench", Filesystem: "ext4", EnsureFilesystem: true})
		changes = append(changes, vmm.Change{Op: vmm.Add, Mount: combined})
		start := time.Now()
		applyAll(ctx, b, m, changes)
		s.mount += time.Since(start)
		start = time.Now()
		var back []vmm.Change
		for i := len(changes) - 1; i >= 0; i-- {
			back = append(back, changes[i].Inverse())
		}
		applyAll(ctx, b, m, back)
		s.unmount += time.Since(start)
	}
	return s.each(b)
}

func applyAll(ctx context.Context, b *testing.B, m vmm.Machine, changes []vmm.Change) {
	b.Helper()
	for _, c := range changes {
		if err := m.Apply(ctx, c); err != nil {
			b.Fatal(err)
		}
	}
}
