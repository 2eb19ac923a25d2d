package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/qemu"
)

// cost is what it took to come from an image to a root.
type cost struct {
	time        time.Duration
	conversions int // of layers
	devices     int // attached
	roundTrips  int // to the guest
}

// BenchmarkSecondRun measures the way from an image to a root in a real VM, when store and VM have the
// image already and a container of it runs: opening and importing the image, and mounting its layers. A
// ratio is that to the first run, which found an empty store and a VM without layers.
func BenchmarkSecondRun(b *testing.B) {
	const layerCount = 10
	vm, changes := recordedVM(b)
	var converted atomic.Int32
	st, err := store.Open(b.Context(), b.TempDir(),
		store.Options{Convert: func(ctx context.Context, o layerdir.Options) (layerdir.Result, error) {
			converted.Add(1)
			return layerdir.Convert(ctx, o)
		}})
	if err != nil {
		b.Fatal(err)
	}
	src := smallImage(b, layerCount)
	run := func(b *testing.B, id, scratch string) (*layers.Mounted, cost) {
		b.Helper()
		converted.Store(0)
		changes.forget()
		start := time.Now()
		m := mount(b, layers.Request{VM: vm, ID: id, Layers: imported(b, st, src), Scratch: scratch})
		c := cost{time: time.Since(start), conversions: int(converted.Load())}
		c.devices, c.roundTrips = changes.count()
		return m, c
	}

	// The guest loads its drivers at first use; that is no part of what is compared.
	warm, _ := stackAs(b, 2, layerdir.Options{Format: layerdir.EROFS})
	release(b, mount(b, layers.Request{VM: vm, ID: "warm", Layers: warm, Scratch: scratch(b)}))
	shared := scratch(b)
	holder, first := run(b, "first", shared)
	defer release(b, holder)
	if first.conversions != layerCount || first.devices != 2 {
		b.Errorf("the first run found something: %+v", first)
	}
	for _, c := range []struct {
		name, scratch string
		want          cost
	}{
		{"no-scratch", "", cost{roundTrips: 1}},
		{"shared-scratch", shared, cost{roundTrips: 1}},
		{"own-scratch", scratch(b), cost{devices: 1, roundTrips: 2}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var sum time.Duration
			for b.Loop() {
				m, got := run(b, "second", c.scratch)
				release(b, m)
				sum += got.time
				if got.time = 0; got != c.want {
					b.Fatalf("a second run took %+v, want %+v", got, c.want)
				}
			}
			each := sum / time.Duration(b.N)
			b.ReportMetric(0, "ns/op") // the release is in it
			b.ReportMetric(inMS(each), "ms/run")
			b.ReportMetric(float64(each)/float64(first.time), "×first")
			b.ReportMetric(float64(c.want.conversions), "conversions")
			b.ReportMetric(float64(c.want.devices), "devices")
			b.ReportMetric(float64(c.want.roundTrips), "round-trips")
		})
	}
}

// smallImage creates an image of n small layers.
func smallImage(b *testing.B, n int) image.Source {
	b.Helper()
	blobs := imagetest.Blobs{}
	var in []imagetest.Layer
	for i := range n {
		in = append(in, imagetest.Layer{Compression: "gzip",
			Tar: treetest.Tar(b, treetest.Entry{Name: "data/"},
				treetest.Entry{Name: fmt.Sprintf("data/f%d", i), Body: "a line\n"})})
	}
	src, err := image.ParseSource("oci:" + blobs.Layout(b, imagetest.Tagged(blobs.Image(b, nil, in...), "v1")) + ":v1")
	if err != nil {
		b.Fatal(err)
	}
	return src
}

// imported brings an image into the store and returns its layers, top first.
func imported(b *testing.B, st *store.Store, src image.Source) (top []layers.Layer) {
	b.Helper()
	img, err := image.Open(b.Context(), src, image.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer img.Close()
	rec, err := img.Import(b.Context(), st, image.ImportOptions{})
	if err != nil {
		b.Fatal(err)
	}
	folders, err := st.Folders(rec, store.Format{File: layerdir.EROFS})
	if err != nil {
		b.Fatal(err)
	}
	for _, dir := range folders {
		top = append(top, layers.Layer{Folder: dir})
	}
	return top
}

// recorded is a machine that keeps a log of its Changes.
type recorded struct {
	vmm.Machine
	mu  sync.Mutex
	log []vmm.Change
}

func (r *recorded) Apply(ctx context.Context, c vmm.Change) error {
	r.mu.Lock()
	r.log = append(r.log, c)
	r.mu.Unlock()
	return r.Machine.Apply(ctx, c)
}

func (r *recorded) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

func (r *recorded) count() (devices, roundTrips int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.log {
		if c.Device != nil {
			devices++
		}
		if c.Mount != nil {
			roundTrips++
		}
	}
	return devices, roundTrips
}

// recordedVM starts a VM of the benchmark's own whose Changes are recorded.
func recordedVM(b *testing.B) (*uvm.UtilityVM, *recorded) {
	b.Helper()
	started, dir := startVM(b)
	if err := started.Close(); err != nil {
		b.Fatal(err)
	}
	r := &recorded{}
	vm, err := uvm.Open(b.Context(), dir, func(ctx context.Context) (_ vmm.Machine, err error) {
		r.Machine, err = qemu.Open(ctx, dir, slog.New(slog.DiscardHandler))
		return r, err
	}, uvm.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := vm.Close(); err != nil {
			b.Errorf("closing the VM: %v", err)
		}
	})
	return vm, r
}
