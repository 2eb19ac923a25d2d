package qemu

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// memoryUse is what /proc says of a process's memory, in KiB.
func memoryUse(b *testing.B, pid int) map[string]float64 {
	b.Helper()
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	use := map[string]float64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) == 3 {
			if use[words[0]], err = strconv.ParseFloat(words[1], 64); err != nil {
				b.Fatal(err)
			}
		}
	}
	return use
}

// BenchmarkTemplate compares machines of a template with one that boots, in turns: the time of Start of the first of
// the kind, which boots and is saved, of one that is loaded from the file, and of one that is loaded while that runs;
// and the memory that is the last one's own, with all that one that boots has.
func BenchmarkTemplate(b *testing.B) {
	h := newTemplated(b)
	const rounds = 5
	for b.Loop() {
		measured := map[string][]float64{}
		for i := range rounds {
			if err := os.RemoveAll(filepath.Join(h.c.CacheDir, templatesDir)); err != nil {
				b.Fatal(err)
			}
			var all []*Machine
			took := func(template bool, booted, loaded int) float64 {
				h.c.Template = template
				began := time.Now()
				all = append(all, h.start(true, booted, loaded))
				return time.Since(began).Seconds()
			}
			boot := took(false, 2*i+1, 2*i)
			note := func(unit string, v float64) { measured[unit] = append(measured[unit], v) }
			note("s/boot", boot)
			note("×boot-first", took(true, 2*i+2, 2*i)/boot)
			note("×boot-file", took(true, 2*i+2, 2*i+1)/boot)
			note("×boot", took(true, 2*i+2, 2*i+2)/boot)
			own := memoryUse(b, all[3].proc.pid)
			note("×memory", (own["Private_Clean:"]+own["Private_Dirty:"])/memoryUse(b, all[0].proc.pid)["Rss:"])
			for _, m := range all {
				end(b, m)
			}
		}
		for unit, v := range measured {
			slices.Sort(v)
			b.ReportMetric(v[rounds/2], unit)
			b.ReportMetric(v[rounds/4], unit+"-q1")
			b.ReportMetric(v[rounds*3/4], unit+"-q3")
		}
	}
}
