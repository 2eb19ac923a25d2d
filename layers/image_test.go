package layers

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestImageKept: what is kept of an image is found by every later process, and goes with the container. What is too
// large is refused before anything is touched.
func TestImageKept(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	large := &Image{Config: json.RawMessage(`"` + strings.Repeat("x", maxImage) + `"`)}
	for _, bad := range []*Image{large, {Config: json.RawMessage("{")}} {
		r := w.request("a", w.layers)
		r.Image = bad
		if _, err := Mount(t.Context(), r); err == nil || bad == large && !errors.Is(err, ErrInvalid) {
			t.Errorf("mounted with %.10s: %v", bad.Config, err)
		}
		w.checkEmpty()
	}

	want := &Image{Name: "app:v1", Digest: "sha256:0", Config: json.RawMessage(`{"user":"app"}`)}
	r := w.request("a", w.layers)
	r.Image = want
	m := w.mustMount(r)
	w.mustMount(w.request("b", w.layers))
	if err := w.vm.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	found, err := Open(w.vm, "a")
	if err != nil {
		t.Fatal(err)
	}
	for i, kept := range []*Image{m.Image, found.Image} {
		if d := cmp.Diff(want, kept); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
	all, err := List(w.state)
	if err != nil || len(all) != 2 || all[1].Image != nil || cmp.Diff(want, all[0].Image) != "" {
		t.Errorf("listed: %+v, %v", all, err)
	}
	if err := found.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup(w.state, "a"); !errors.Is(err, uvm.ErrUnknownClaim) {
		t.Errorf("after Release: %v", err)
	}
	b := w.mustMount(w.request("a", w.layers))
	if b.Image != nil {
		t.Errorf("a container without an image has that of another: %+v", b.Image)
	}
}
