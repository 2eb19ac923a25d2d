package layers_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// TestHCSConformance replays what was recorded of hcsshim and compares call by call: see
// testdata/hcs/README.md for the format, and deviations for where we differ and why.
func TestHCSConformance(t *testing.T) {
	files, err := filepath.Glob("testdata/hcs/*/scenario.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata/hcs: %v", err)
	}
	for _, f := range files {
		s := loadScenario(t, filepath.Dir(f))
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			checkTable(t, s)
			runScenario(t, newReplay(t, s))
		})
	}
}

// checkTable wants an entry for each defect that the scenario marks, and a reason in each entry.
func checkTable(t *testing.T, s *scenario) {
	for _, d := range s.Defects {
		if !slices.ContainsFunc(deviations, func(x deviation) bool { return x.scenario == s.Name && x.step == d.Step }) {
			t.Errorf("step %q: the defect there is not in the table of deviations: %s", d.Step, d.Text)
		}
	}
	for _, d := range deviations {
		if d.scenario != s.Name {
			continue
		}
		if d.why == "" {
			t.Errorf("step %q: a deviation without a reason", d.step)
		}
		if !slices.ContainsFunc(s.Steps, func(st step) bool { return st.Step == d.step }) {
			t.Errorf("step %q: a deviation in a step that there is not", d.step)
		}
	}
}

func runScenario(t *testing.T, r *replay) {
	for _, st := range r.s.Steps {
		// Far more than any step needs: it only keeps a hang from eating the whole test run.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		r.calls.Step(st.Step, st.Inject...)
		result, err := r.do(ctx, st)
		cancel()
		r.check(st, result, err)
	}
	r.calls.Wait()
}

// check compares what a step did and returned with what hcsshim did, or with the deviation.
func (r *replay) check(st step, result any, err error) {
	r.t.Helper()
	d := deviation{unseen: true}
	if i := slices.IndexFunc(deviations,
		func(d deviation) bool { return d.scenario == r.s.Name && d.step == st.Step }); i >= 0 {
		d = deviations[i]
	}
	theirs := compared(r.s.trace, st.Step)
	for _, c := range theirs {
		ownScratchFolder(c)
	}
	want := r.instead(d, theirs)
	got := compared(r.calls.Trace(), st.Step)
	if diff := cmp.Diff(briefs(want), briefs(got)); diff != "" {
		r.t.Errorf("step %q: calls differ (-wanted +ours):\n%s", st.Step, diff)
	} else {
		for i := range want {
			if want[i].Args == nil {
				continue // a call that hcsshim did not make in this step
			}
			if diff := cmp.Diff(want[i], got[i]); diff != "" {
				r.t.Errorf("step %q: call %d, %s, differs (-wanted +ours):\n%s", st.Step, i+1, brief(want[i]), diff)
			}
		}
	}
	r.checkOutcome(st, d, result, err)
	if !d.unseen && d.outcome == sameOutcome && d.result == "" && cmp.Equal(theirs, got) {
		r.t.Errorf("step %q: nothing deviates here any more: take the entry out of the table", st.Step)
	}
}

// instead is what we are to call where hcsshim called theirs.
func (r *replay) instead(d deviation, theirs []hcstest.Call) []hcstest.Call {
	var want []hcstest.Call
	raw, err := json.Marshal(theirs)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range d.replace {
		from, to := quoted(r.t, p[0]), quoted(r.t, p[1])
		if !strings.Contains(string(raw), from) {
			r.t.Errorf("step %q: there is no %s to replace", d.step, from)
		}
		raw = []byte(strings.ReplaceAll(string(raw), from, to))
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		r.t.Fatal(err)
	}
	if d.calls == nil {
		return want
	}
	out := make([]hcstest.Call, len(d.calls))
	for i, text := range d.calls {
		out[i] = fromBrief(text)
		if k := slices.IndexFunc(want, func(c hcstest.Call) bool { return brief(c) == text }); k >= 0 {
			out[i] = want[k] // with hcsshim's document
		}
	}
	return out
}

// quoted is a text as it stands in marshalled JSON, which escapes some characters.
func quoted(t *testing.T, s string) string {
	if strings.HasPrefix(s, `"`) || !strings.Contains(s, `\`) {
		return s
	}
	var plain string
	if err := json.Unmarshal([]byte(`"`+s+`"`), &plain); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(raw), `"`)
}

func (r *replay) checkOutcome(st step, d deviation, result any, err error) {
	r.t.Helper()
	failed := st.Error != nil
	switch d.outcome {
	case succeeds:
		failed = false
	case fails:
		failed = true
	}
	if failed != (err != nil) {
		r.t.Errorf("step %q: our error is %v, to fail is %t; hcsshim's error: %+v", st.Step, err, failed, st.Error)
		return
	}
	if err != nil {
		sentinel := d.sentinel
		if sentinel == "" && st.Error != nil {
			sentinel = st.Error.Sentinel
		}
		if sentinel != "" && !errors.Is(err, sentinels[sentinel]) {
			r.t.Errorf("step %q: error %q does not match %s", st.Step, err, sentinel)
		}
		return
	}
	want := st.Result
	if d.result != "" {
		want = json.RawMessage(d.result)
	}
	if want == nil {
		return
	}
	ours, err := json.Marshal(result)
	if err != nil {
		r.t.Fatal(err)
	}
	if diff := cmp.Diff(decoded(r.t, want), decoded(r.t, ours)); diff != "" {
		r.t.Errorf("step %q: results differ (-wanted +ours):\n%s", st.Step, diff)
	}
}

func decoded(t *testing.T, raw []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// ownScratchFolder is the deviation of every Linux mount: a container has a directory of its own on
// the scratch, whether shared or not. hcsshim's containers on one scratch write into each other's.
func ownScratchFolder(c hcstest.Call) {
	walk(c.Args, func(m map[string]any) {
		root, _ := m["ContainerRootPath"].(string)
		scratch, _ := m["ScratchPath"].(string)
		if id, linux := strings.CutSuffix(root, "/rootfs"); linux && scratch != "" {
			m["ScratchPath"] = scratch + "/scratch/" + id[strings.LastIndex(id, "/")+1:]
		}
	})
}

// walk calls f for every object in a document.
func walk(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, inner := range v {
			walk(inner, f)
		}
	case []any:
		for _, inner := range v {
			walk(inner, f)
		}
	}
}
