package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/store"
)

// scaleLayers is how many layers an image has of which a store is filled.
const scaleLayers = 50

// BenchmarkScale works with stores of so many layers, of a file each, a hundred images or fewer: opening them, listing
// the images, finding one, importing one more with a new layer on those of another, and collecting what it left.
func BenchmarkScale(b *testing.B) {
	for _, layers := range []int{50, 500, 5000} {
		dir := filepath.Join(b.TempDir(), "store")
		s := open(b, dir, store.Options{})
		began := time.Now()
		var last store.Request
		for i := range layers / scaleLayers {
			last = request(b, fmt.Sprintf("image%d", i), i*scaleLayers, scaleLayers)
			mustImport(b, s, last)
		}
		filled := time.Since(began)
		run := func(name string, n int, f func()) {
			b.Run(fmt.Sprintf("%s/layers=%d", name, layers), func(b *testing.B) {
				for b.Loop() {
					f()
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/each")
			})
		}
		b.Run(fmt.Sprintf("fill/layers=%d", layers), func(b *testing.B) {
			for b.Loop() { // it was done above
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(filled.Microseconds())/float64(layers), "µs/each")
		})
		run("open", 1, func() { open(b, dir, store.Options{}) })
		run("list", layers/scaleLayers, func() {
			if all, err := s.Images(); err != nil || len(all) != layers/scaleLayers {
				b.Fatal(len(all), err)
			}
		})
		run("find", 1, func() {
			if _, err := s.Find(last.Name); err != nil {
				b.Fatal(err)
			}
		})
		n := 1_000_000
		run("import", 1, func() {
			n++
			r := last
			r.Name = "more"
			r.Layers = append(r.Layers[:scaleLayers:scaleLayers], layer(tarball(b, n)))
			mustImport(b, s, r)
		})
		run("gc", layers, func() {
			if _, err := s.GC(b.Context(), false); err != nil {
				b.Fatal(err)
			}
		})
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
}
