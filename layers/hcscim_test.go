package layers_test

import (
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
)

// newCIMWorld is a Windows VM and a container whose layers are two block images, merged to a third.
func newCIMWorld(t *testing.T, external bool, reach ...func(*replay)) *hcsWorld {
	w := newHCSWorld(t, vmm.Windows, external, 0, reach...)
	w.cim = &wclayer.CIMMount{Kind: wclayer.BlockFile,
		Image:   wclayer.CIM{Dir: `C:\b\merged.bcim`, Name: "merged.cim"},
		Sources: []wclayer.CIM{{Dir: `C:\b\top.bcim`, Name: "top.cim"}, {Dir: `C:\b\base.bcim`, Name: "base.cim"}}}
	for _, c := range append(w.cim.Sources, w.cim.Image) {
		w.files.put(fixture{Path: c.Dir, Kind: "file", Size: 4096})
	}
	return w
}

var volumeGUID = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

func TestXenonCIMDocuments(t *testing.T) { checkCIMDocuments(t, newCIMWorld(t, false)) }

// checkCIMDocuments compares what the service is told in a mount and an unmount with
// testdata/xenon-cim.jsonl, where the volume's GUID, which is chosen anew for each mount, is zero.
func checkCIMDocuments(t *testing.T, w *hcsWorld) {
	t.Helper()
	golden, err := os.ReadFile("testdata/xenon-cim.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	w.calls.Step("cim")
	if err := errors.Join(w.mount(t.Context()), w.unmount(t.Context())); err != nil {
		t.Fatal(err)
	}
	var want, got []any
	for line := range strings.Lines(string(golden)) {
		want = append(want, decoded(t, []byte(line)))
	}
	volumes := map[string]bool{}
	for _, c := range compared(w.calls.Trace(), "cim") {
		raw, err := json.Marshal(map[string]any{"fn": c.Fn, "args": c.Args})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, decoded(t, volumeGUID.ReplaceAllFunc(raw, func(id []byte) []byte {
			volumes[string(id)] = true
			return []byte("00000000-0000-0000-0000-000000000000")
		})))
	}
	if diff := cmp.Diff(want, got); diff != "" || len(volumes) != 1 {
		t.Errorf("documents, with the volumes %v (-want +got):\n%s", volumes, diff)
	}
}
