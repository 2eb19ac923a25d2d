package qemu

import (
	"bufio"
	"os"
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

// BenchmarkTemplate compares a machine that is loaded from a template with one that boots, in turns: the time of Start,
// and the memory that is its own, while another one of the template runs, with all that the other has.
func BenchmarkTemplate(b *testing.B) {
	h := newTemplated(b)
	h.start(true, 1, 1)
	const rounds = 5
	for b.Loop() {
		var times, sizes, boots []float64
		for i := range rounds {
			h.c.Template = false
			began := time.Now()
			cold := h.start(true, 2+i, 1+i)
			boot := time.Since(began).Seconds()
			h.c.Template = true
			began = time.Now()
			loaded := h.start(true, 2+i, 2+i)
			times, boots = append(times, time.Since(began).Seconds()/boot), append(boots, boot)
			own := memoryUse(b, loaded.proc.pid)
			sizes = append(sizes, (own["Private_Clean:"]+own["Private_Dirty:"])/memoryUse(b, cold.proc.pid)["Rss:"])
			end(b, cold)
			end(b, loaded)
		}
		for unit, v := range map[string][]float64{"×boot": times, "×memory": sizes, "s/boot": boots} {
			slices.Sort(v)
			b.ReportMetric(v[rounds/2], unit)
			b.ReportMetric(v[rounds/4], unit+"-q1")
			b.ReportMetric(v[rounds*3/4], unit+"-q3")
		}
	}
}
