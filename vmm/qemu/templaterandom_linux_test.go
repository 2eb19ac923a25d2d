package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
)

// TestTemplateRandom: what two machines of a template draw at first is the same where nothing renews them, and their
// own from the renewal on: random bytes, UUIDs, what a new process is given, and where its parts are. So that it is
// the renewal by the agent that is seen, there is no device that tells the guest's kernel of its fate.
func TestTemplateRandom(t *testing.T) {
	needQEMU(t)
	h := newTemplatedOf(t, bootimagetest.ImageOf(t, bootimagetest.Program(t, "vmm/qemu/testdata/drawing")))
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
	machines := []*Machine{h.start(true, 1, 0), h.start(true, 1, 1)} // the one that was saved, and one of it
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
	before, after := drawn("before"), drawn("after")
	for _, what := range []string{"getrandom", "uuid", "AT_RANDOM", "[stack]", "[vdso]"} {
		if a, b := before[0][what], before[1][what]; a == "" || a != b {
			t.Errorf("%s before the renewal: %q and %q: it is not seen what the renewal does", what, a, b)
		}
		values := []string{before[0][what], after[0][what], after[1][what]}
		slices.Sort(values)
		if values[0] == "" || len(slices.Compact(values)) != 3 {
			t.Errorf("%s is known or shared: before %q, after %q and %q", what, before[0][what], after[0][what],
				after[1][what])
		}
	}
}
