package uvm

import (
	"context"
	"fmt"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// BenchmarkLayer is the bookkeeping of one more container that reopens a layer which is in the VM
// already, and lets it go, while n containers hold it: it should not depend on n. The journal is on
// disk. ns/layer is for taking and releasing together.
func BenchmarkLayer(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("containers=%d", n), func(b *testing.B) {
			limits := vmmtest.LinuxLimits()
			f := vmmtest.New("vm", vmm.Linux, limits)
			vm := openFake(b, f, b.TempDir())
			for i := range n {
				c := mustClaim(b, vm, fmt.Sprint("c", i))
				mustAttach(b, vm, c, disk("/l/1"))
				if err := c.Commit(nil); err != nil {
					b.Fatal(err)
				}
			}
			c := mustClaim(b, vm, "one more")
			b.ReportAllocs()
			for b.Loop() {
				le, err := vm.SCSI().Attach(context.Background(), c, "layer", disk("/l/1"))
				if err != nil {
					b.Fatal(err)
				}
				if err := le.Release(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns/layer")
		})
	}
}

// BenchmarkAttach is the bookkeeping of a disk that comes and goes, journal included, with a machine
// that takes no time.
func BenchmarkAttach(b *testing.B) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm := openFake(b, f, b.TempDir())
	c := mustClaim(b, vm, "a")
	for b.Loop() {
		f.Script(nil) // forgets the log
		if err := mustAttach(b, vm, c, disk("/l/1")).Release(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkContainers is what opening a VM with n containers takes, of each container, and listing them without opening
// it: neither should depend on n. Each holds a layer that all share and a claim of its own.
func BenchmarkContainers(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		dir := b.TempDir()
		f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
		vm := openFake(b, f, dir)
		for i := range n {
			c := mustClaim(b, vm, fmt.Sprint("c", i))
			mustAttach(b, vm, c, disk("/l/1"))
			if err := c.Commit(nil); err != nil {
				b.Fatal(err)
			}
		}
		if err := vm.Close(); err != nil {
			b.Fatal(err)
		}
		each := func(name string, do func(b *testing.B)) {
			b.Run(fmt.Sprintf("%s/containers=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					do(b)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/container")
			})
		}
		each("open", func(b *testing.B) {
			vm := openFake(b, f, dir)
			if len(vm.Claims()) != n {
				b.Fatalf("%d containers", len(vm.Claims()))
			}
			if err := vm.Close(); err != nil {
				b.Fatal(err)
			}
		})
		each("list", func(b *testing.B) {
			s, err := ReadStatus(dir)
			if err != nil || len(s.Claims) != n {
				b.Fatalf("%d containers, %v", len(s.Claims), err)
			}
		})
	}
}
