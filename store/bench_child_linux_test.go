package store_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/store"
)

// usage is what a piece of work cost.
type usage struct {
	seconds float64
	peak    float64 // MiB of memory, of the largest process
	written float64 // MiB that were written to files, on the disk yet or not
}

// measured runs a program and tells what it and its children cost. GNU time asks the kernel: a child of
// this process would be charged with the memory that this process has at the time of the fork.
func measured(b *testing.B, env []string, args ...string) usage {
	b.Helper()
	for _, name := range []string{"time", args[0]} {
		_, err := exec.LookPath(name)
		treetest.Need(b, err == nil, "the program "+name, "install it (time, umoci, erofs-utils, zstd)")
	}
	report := filepath.Join(b.TempDir(), "usage")
	cmd := exec.CommandContext(b.Context(), "time", append([]string{"-o", report, "-f", "%M %O"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	u := usage{seconds: time.Since(start).Seconds()}
	if err != nil {
		b.Fatalf("%s: %v\n%s", args[0], err, out)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Sscan(string(text), &u.peak, &u.written); err != nil {
		b.Fatalf("%q: %v", text, err)
	}
	u.peak /= 1024    // from KiB
	u.written /= 2048 // from blocks of 512 bytes
	return u
}

// benchJob makes the test program do one of the jobs below and nothing else. The arguments of a job are
// a folder for the results, and what to work on.
const benchJob = "STRATA_BENCH_JOB"

var benchJobs = map[string]func(t *testing.T, out string, in []string){
	"import":   importJob,
	"tar2ext4": tar2ext4Job,
}

// TestBenchChild is no test but the process that BenchmarkImportImage measures.
func TestBenchChild(t *testing.T) {
	job := benchJobs[os.Getenv(benchJob)]
	if job == nil {
		t.Skip("it runs as a child of a benchmark only")
	}
	args := flag.Args() // after the flags of the test
	job(t, args[0], args[1:])
}

// importJob imports an image into a store.
func importJob(t *testing.T, out string, in []string) {
	img := openImage(t, in[0])
	if _, err := img.Import(t.Context(), open(t, out, store.Options{}), image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
}

// tar2ext4Job converts tars with the reference's package, one after the other.
func tar2ext4Job(t *testing.T, out string, in []string) {
	for i, path := range in {
		err := func() error {
			r, err := os.Open(path)
			if err != nil {
				return err
			}
			defer r.Close()
			w, err := os.Create(filepath.Join(out, strconv.Itoa(i)+".vhd"))
			if err != nil {
				return err
			}
			return errors.Join(tar2ext4.Convert(r, w, tar2ext4.ConvertWhiteout, tar2ext4.AppendVhdFooter), w.Close())
		}()
		if err != nil {
			t.Fatal(err)
		}
	}
}
