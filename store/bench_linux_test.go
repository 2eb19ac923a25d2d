package store_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layertree/treetest"
	"github.com/stratavm/strata/store"
)

// usage is what a piece of work cost.
type usage struct {
	wall    time.Duration
	peak    int64 // bytes of memory, of a process of its own
	written int64 // bytes that reached the disk's queue, or less where the file system delays
}

// measured runs a program and tells what it cost.
func measured(b *testing.B, name string, env []string, args ...string) usage {
	b.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		b.Skipf("needs %s: %v", name, err)
	}
	cmd := exec.CommandContext(b.Context(), path, args...)
	cmd.Env = append(os.Environ(), env...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	wall := time.Since(start)
	if err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
	ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		b.Fatal("no resource usage")
	}
	return usage{wall, ru.Maxrss << 10, ru.Oublock * 512}
}

// The environment of a child that imports one image, to be measured.
const (
	benchImage = "STRATA_BENCH_IMAGE"
	benchStore = "STRATA_BENCH_STORE"
)

// TestBenchChild is no test but the process that BenchmarkImportImage measures.
func TestBenchChild(t *testing.T) {
	if os.Getenv(benchImage) == "" {
		t.Skip("it runs as a child of a benchmark only")
	}
	src, err := image.ParseSource(os.Getenv(benchImage))
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(t.Context(), src, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if _, err := img.Import(t.Context(), open(t, os.Getenv(benchStore), store.Options{}), image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkImportImage imports a Debian image, with gzip and with zstd, and next to it unpacks the same
// with umoci and with tar. The ratios are to the import.
func BenchmarkImportImage(b *testing.B) {
	root := debianTar(b)
	dir := b.TempDir()
	layout, bundle := filepath.Join(dir, "gzip"), filepath.Join(dir, "bundle")
	treetest.Run(b, "umoci", "init", "--layout", layout)
	treetest.Run(b, "umoci", "new", "--image", layout+":v1")
	treetest.Run(b, "umoci", "raw", "add-layer", "--image", layout+":v1", root)
	treetest.Run(b, "skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", "zstd", "oci:"+layout+":v1", "oci:"+filepath.Join(dir, "zstd")+":v1")
	for _, how := range []string{"gzip", "zstd"} {
		b.Run(how, func(b *testing.B) {
			packed := filepath.Join(dir, "packed")
			treetest.Run(b, "sh", "-c", fmt.Sprintf("%s -q -f -c %q > %q", how, root, packed))
			for i := 0; b.Loop(); i++ {
				at := func(name string) string { return filepath.Join(dir, fmt.Sprintf("%s-%s-%d", name, how, i)) }
				ours := measured(b, os.Args[0], []string{benchImage + "=oci:" + filepath.Join(dir, how) + ":v1", benchStore + "=" + at("store")}, "-test.run=^TestBenchChild$")
				alone := measured(b, "sh", nil, "-c", fmt.Sprintf("%s -d -c < %q > /dev/null", how, packed))
				if err := os.Mkdir(at("tar"), 0o755); err != nil {
					b.Fatal(err)
				}
				untar := measured(b, "sh", nil, "-c", fmt.Sprintf("%s -d -c < %q | tar -x -p -C %q && sync -f %q", how, packed, at("tar"), at("tar")))
				b.ReportMetric(ours.wall.Seconds(), "s/import")
				b.ReportMetric(float64(ours.peak)/(1<<20), "MiB-peak")
				b.ReportMetric(float64(ours.written)/(1<<20), "MiB-written")
				b.ReportMetric(alone.wall.Seconds()/ours.wall.Seconds(), "decompression/import")
				b.ReportMetric(untar.wall.Seconds()/ours.wall.Seconds(), "tar/import")
				if how == "gzip" { // umoci cannot read zstd everywhere
					umoci := measured(b, "umoci", nil, "unpack", "--image", layout+":v1", bundle+fmt.Sprint(i))
					b.ReportMetric(umoci.wall.Seconds()/ours.wall.Seconds(), "umoci/import")
					b.ReportMetric(float64(umoci.peak)/float64(ours.peak), "umoci-peak/peak")
				}
				// Again: everything is there.
				again := measured(b, os.Args[0], []string{benchImage + "=oci:" + filepath.Join(dir, how) + ":v1", benchStore + "=" + at("store")}, "-test.run=^TestBenchChild$")
				b.ReportMetric(again.wall.Seconds(), "s/second-import")
			}
		})
	}
}
