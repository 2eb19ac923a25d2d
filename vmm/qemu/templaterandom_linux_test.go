package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/vmm"
)

// drawnWords are those of which what is drawn is looked at.
var drawnWords = []string{"getrandom", "uuid", "AT_RANDOM", "[stack]", "[vdso]"}

// TestTemplateRandom: what two machines of a template draw at first is the same where nothing renews them, and their
// own from the renewal on: random bytes, UUIDs, what a new process is given, and where its parts are. So that it is
// the renewal by the agent that is seen, there is no device that tells the guest's kernel of its fate. The kernel
// takes new random numbers by itself now and then: where one did before it drew, two other machines are looked at.
func TestTemplateRandom(t *testing.T) {
	needQEMU(t)
	img := bootimagetest.ImageOf(t, bootimagetest.Program(t, "vmm/qemu/testdata/drawing"))
	for turn := 1; ; turn++ {
		before, after := drawing(t, img)
		alike := 0
		for _, what := range drawnWords {
			a, b := before[0][what], before[1][what]
			if a != "" && a == b {
				alike++
			} else if turn == 3 {
				t.Errorf("%s before the renewal: %q and %q: it is not seen what the renewal does", what, a, b)
			}
			values := []string{a, after[0][what], after[1][what]}
			slices.Sort(values)
			if values[0] == "" || len(slices.Compact(values)) != 3 {
				t.Errorf("%s is known or shared: before %q, after %q and %q", what, a, after[0][what], after[1][what])
			}
		}
		if alike == len(drawnWords) || turn == 3 || t.Failed() {
			return
		}
	}
}

// drawing returns what two machines of a template drew before and after they were renewed: the one that was saved, and
// one of it.
func drawing(t *testing.T, img vmm.BootImage) (before, after []map[string]string) {
	t.Helper()
	h := newTemplatedOf(t, img)
	h.c.CPUs = 1 // each has a stock of random numbers
	rewrite := h.c.rewrite
	h.c.rewrite = func(args []string) []string {
		i := slices.IndexFunc(args, func(s string) bool { return strings.HasPrefix(s, "vmgenid") })
		if i < 0 {
			t.Error("the machine has no vmgenid")
			return rewrite(args)
		}
		return rewrite(slices.Delete(args, i-1, i+1))
	}
	machines := []*Machine{h.start(true, 1, 0), h.start(true, 1, 1)}
	drawn := func(when string) (all []map[string]string) {
		for _, m := range machines {
			out, code := run(t, m, "/proc/self/exe", "show", "/run/"+when)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, out)
			}
			words := map[string]string{}
			for line := range strings.Lines(out) {
				what, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				words[what] = value
			}
			all = append(all, words)
		}
		return all
	}
	return drawn("before"), drawn("after")
}
