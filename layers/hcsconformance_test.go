package layers_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

func TestHCSConformance(t *testing.T) {
	dirs, err := filepath.Glob("testdata/hcs/*/scenario.json")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no scenarios in testdata/hcs: %v", err)
	}
	for _, d := range dirs {
		s := loadScenario(t, filepath.Dir(d))
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			runScenario(t, s)
		})
	}
}

func runScenario(t *testing.T, s *scenario) {
	r := newReplay(t, s)
	for _, st := range s.Steps {
		// Far more than any step needs: it only keeps a hang from eating the whole test run.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		r.service.Step(st.Step, st.Inject...)
		result, err := r.do(ctx, st)
		cancel()
		r.check(st, result, err)
	}
	r.service.Wait()
}

// check compares what a step did and returned with the scenario.
func (r *replay) check(st step, result any, err error) {
	want, got := compared(r.s.trace, st.Step), compared(r.service.Trace(), st.Step)
	for _, c := range want {
		ownScratchFolder(c)
	}
	if d := cmp.Diff(want, got); d != "" {
		r.t.Errorf("step %q: calls differ (-hcsshim +ours):\n%s", st.Step, d)
	}
	if (st.Error != nil) != (err != nil) {
		r.t.Errorf("step %q: error %v, hcsshim's was %v", st.Step, err, st.Error)
	}
	if err == nil && st.Result != nil {
		ours, merr := json.Marshal(result)
		if merr != nil {
			r.t.Fatal(merr)
		}
		var a, b any
		if json.Unmarshal(st.Result, &a) != nil || json.Unmarshal(ours, &b) != nil {
			r.t.Fatalf("step %q: results are no JSON", st.Step)
		}
		if d := cmp.Diff(a, b); d != "" {
			r.t.Errorf("step %q: results differ (-hcsshim +ours):\n%s", st.Step, d)
		}
	}
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
