package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
)

// travels are the ways of many layers into a VM that the benchmarks show next to each other.
var travels = []struct {
	name   string
	format layerdir.Format
	attach layers.Attach
}{
	{"index", layerdir.EROFS, layers.AttachAuto},
	{"partitions", layerdir.VHD, layers.AttachOneDisk},
	{"separate", layerdir.EROFS, layers.AttachSeparate},
}

// BenchmarkOneDisk measures mounting and unmounting 1, 10, 30 and 100 layers in a real VM that holds
// none of them: as an index over EROFS layers, as partitions with ext4, and each EROFS layer by itself.
// A ratio is that to one layer of the same kind, in the same VM and run.
func BenchmarkOneDisk(b *testing.B) {
	vm, _ := startVM(b)
	disk := scratch(b)
	for _, way := range travels {
		as := layerdir.Options{Format: way.format}
		// The guest loads its drivers at first use; that is no part of what is compared.
		warm, _ := stackAs(b, 2, as)
		release(b, mount(b, layers.Request{VM: vm, ID: "warm", Layers: warm, Scratch: disk, Attach: way.attach}))
		var one spent
		for _, n := range []int{1, 10, 30, 100} {
			b.Run(fmt.Sprintf("%s/layers=%d", way.name, n), func(b *testing.B) {
				s := coldMounts(b, vm, disk, n, as, way.attach)
				if n == 1 {
					one = s
				}
				s.report(b, one)
			})
		}
	}
}

// coldMounts returns the medians over several mounts, but of one where that takes long and varies little.
// Each is of new layers: persistent memory that was attached once may stay in the VM.
func coldMounts(b *testing.B, vm *uvm.UtilityVM, disk string, n int, as layerdir.Options, how layers.Attach) spent {
	rounds := 3
	if n >= 100 {
		rounds = 1
	}
	var mounts, unmounts []time.Duration
	for b.Loop() {
		for range rounds {
			top, _ := stackAs(b, n, as)
			start := time.Now()
			m := mount(b, layers.Request{VM: vm, ID: "bench", Layers: top, Scratch: disk, Attach: how})
			mounts = append(mounts, time.Since(start))
			start = time.Now()
			release(b, m)
			unmounts = append(unmounts, time.Since(start))
		}
	}
	return spent{mount: median(mounts), unmount: median(unmounts)}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// lookupFiles is the number of small files in the root that BenchmarkLookup walks.
const lookupFiles = 10000

// BenchmarkLookup measures, inside the root in a real VM, a walk over all names and reading 10,000
// small files that lie in 1 and in 100 layers: below an index, and below an overlay of all layers.
// Nothing is cached in the guest before the walk. A ratio is that to one layer of the same kind.
func BenchmarkLookup(b *testing.B) {
	vm, _ := startVM(b)
	// What the guest does at first use, and its memory's first use, are no part of what is compared.
	warm := mount(b, layers.Request{VM: vm, ID: "warm", Layers: fileLayers(b, 1)})
	walkAndRead(b, vm, warm)
	release(b, warm)
	for _, way := range travels {
		if way.name == "partitions" {
			continue // once mounted it is the overlay of "separate"
		}
		var oneFind, oneRead time.Duration
		for _, n := range []int{1, 100} {
			top := fileLayers(b, n)
			b.Run(fmt.Sprintf("%s/layers=%d", way.name, n), func(b *testing.B) {
				var find, read []time.Duration
				for b.Loop() {
					m := mount(b, layers.Request{VM: vm, ID: "bench", Layers: top, Attach: way.attach})
					f, r := walkAndRead(b, vm, m)
					find, read = append(find, f), append(read, r)
					release(b, m)
				}
				f, r := median(find), median(read)
				if n == 1 {
					oneFind, oneRead = f, r
				}
				b.ReportMetric(inMS(f), "ms/find")
				b.ReportMetric(inMS(r), "ms/read")
				b.ReportMetric(0, "ns/op")
				if oneFind > 0 {
					b.ReportMetric(float64(f)/float64(oneFind), "×find")
					b.ReportMetric(float64(r)/float64(oneRead), "×read")
				}
			})
		}
	}
}

// walkAndRead returns the times of a walk and of reading all files, the start of the programs included.
func walkAndRead(b *testing.B, vm *uvm.UtilityVM, m *layers.Mounted) (find, read time.Duration) {
	b.Helper()
	sh(b, m, "true") // makes the container
	find = timed(b, vm, m, "find / -xdev | wc -l", lookupFiles)
	return find, timed(b, vm, m, "find /data -type f | xargs busybox cat | wc -l", lookupFiles)
}

// timed runs a script that prints a number, which is at least atLeast if the script did its work.
func timed(b *testing.B, vm *uvm.UtilityVM, m *layers.Mounted, script string, atLeast int) time.Duration {
	b.Helper()
	start := time.Now()
	out := sh(b, m, script)
	took := time.Since(start)
	if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || n < atLeast {
		b.Fatalf("%s printed %q, want at least %d", script, out, atLeast)
	}
	return took
}

// fileLayers creates n EROFS layers, top first, that hold lookupFiles files of a line each. Every layer
// has files in all of the 100 directories, as is so with /usr in the layers of a real image.
func fileLayers(b *testing.B, n int) (top []layers.Layer) {
	b.Helper()
	busybox, err := os.ReadFile(need(b, "busybox", "busybox-static"))
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for i := range n {
		files := map[string]string{"data/": ""}
		for d := range 100 {
			name := fmt.Sprintf("data/d%d/", d)
			files[name] = ""
			for f := range lookupFiles / 100 / n {
				files[fmt.Sprintf("%sl%df%d", name, i, f)] = "a line\n"
			}
		}
		if i == 0 {
			for _, d := range []string{"bin/", "proc/", "dev/", "sys/", "tmp/", "etc/"} {
				files[d] = ""
			}
			files["bin/busybox"] = string(busybox)
		}
		l := makeLayer(b, filepath.Join(dir, strconv.Itoa(i)), files, layerdir.Options{Format: layerdir.EROFS})
		top = append([]layers.Layer{{Folder: l}}, top...)
	}
	writeChains(b, top)
	return top
}
