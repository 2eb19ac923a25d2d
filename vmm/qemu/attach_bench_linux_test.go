package qemu

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/vmm"
)

// benchLayers is how many layers are attached: fewer than there are slots of persistent memory, one of which is for the
// guest's driver.
const benchLayers = 10

// BenchmarkAttach adds layers of 4 MiB to a VM and removes them, as persistent memory and as SCSI disks, each half of a
// change by itself; and SCSI disks in whole changes, one by one and four at a time, so that QMP commands overlap.
// It reports the median of all layers, for whole changes the time per layer, and the time of a QMP command without
// effect.
func BenchmarkAttach(b *testing.B) {
	ms := map[string][]float64{}
	took := func(what string, f func()) {
		began := time.Now()
		f()
		ms[what] = append(ms[what], float64(time.Since(began).Microseconds())/1000)
	}
	for b.Loop() {
		m := realVM(b, image(b))
		dir := b.TempDir()
		pmem := func(n int) vmm.Change {
			return vmm.Change{Op: vmm.Add, Device: vmm.VPMEMDevice{Slot: uint32(n), Path: ext4File(b, dir, n, 4<<20)},
				Mount: vmm.MappedPMEM{Slot: uint32(n), MountPath: fmt.Sprintf("/run/l/p%d", n)}}
		}
		scsi := func(n int) vmm.Change {
			d := vmm.SCSIDisk{LUN: uint8(n), Path: ext4File(b, dir, n, 4<<20), ReadOnly: true}
			return vmm.Change{Op: vmm.Add, Device: d,
				Mount: vmm.MappedDisk{LUN: d.LUN, ReadOnly: true, MountPath: fmt.Sprintf("/run/l/s%d", n)}}
		}
		for way, change := range map[string]func(int) vmm.Change{"pmem": pmem, "scsi": scsi} {
			apply(b, m, change(benchLayers)) // the guest loads its driver
			for n := range benchLayers {
				c := change(n)
				device, guest := vmm.Change{Op: vmm.Add, Device: c.Device}, vmm.Change{Op: vmm.Add, Mount: c.Mount}
				took("ms/"+way+"-attach", func() { apply(b, m, device) })
				took("ms/"+way+"-mount", func() { apply(b, m, guest) })
				took("ms/"+way+"-unmount", func() { apply(b, m, guest.Inverse()) })
				if way == "scsi" {
					took("ms/scsi-detach", func() { apply(b, m, device.Inverse()) })
				}
			}
		}
		for range benchLayers {
			took("ms/qmp", func() {
				if err := m.qmp.do(b.Context(), "query-status", nil, nil); err != nil {
					b.Fatal(err)
				}
			})
		}
		for _, at := range []int{1, 4} {
			for _, op := range []string{"add", "remove"} {
				var g errgroup.Group
				g.SetLimit(at)
				began := time.Now()
				for n := range benchLayers {
					c := scsi(n)
					if op == "remove" {
						c = c.Inverse()
					}
					g.Go(func() error { return m.Apply(b.Context(), c) })
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				what := fmt.Sprintf("ms/scsi-%s-%d", op, at)
				ms[what] = append(ms[what], float64(time.Since(began).Microseconds())/1000/benchLayers)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for what, all := range ms {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], what)
	}
}
