package hostmount_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
)

// TestOverlayOfManyLayers: as many layers as the kernel stacks, with long and odd paths, which would
// exceed the page of mount options many times over; one more is an error that says so.
func TestOverlayOfManyLayers(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	for _, writable := range []bool{false, true} {
		dir := t.TempDir()
		make := func(name string) string {
			path := filepath.Join(dir, name)
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}
		var o hostmount.Overlay
		for i := range hostmount.MaxLayers {
			layer := make(fmt.Sprintf(`%s, odd: name\ %d`, strings.Repeat("long", 25), i))
			for _, name := range []string{"same", fmt.Sprint(i)} {
				if err := os.WriteFile(filepath.Join(layer, name), []byte(fmt.Sprint(i)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			o.Lowers = append(o.Lowers, layer)
		}
		if writable {
			o.Upper, o.Work = make("up:per"), make("wo,rk")
		}
		target := make(`tar,get: \`)
		if err := hostmount.MountOverlay(t.Context(), o, target); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(target)
		if err != nil || len(entries) != hostmount.MaxLayers+1 {
			t.Errorf("%d files (%v), want one of each layer and one of all", len(entries), err)
		}
		if b, err := os.ReadFile(filepath.Join(target, "same")); err != nil || string(b) != "0" {
			t.Errorf("the topmost layer is %q: %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); (err == nil) != writable {
			t.Errorf("writing, where that is possible (%t): %v", writable, err)
		}
		if err := hostmount.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		o.Lowers = append(o.Lowers, make("too many"))
		if err := hostmount.MountOverlay(t.Context(), o, target); err == nil ||
			!strings.Contains(err.Error(), fmt.Sprint(hostmount.MaxLayers)) {
			t.Errorf("%d layers: %v", len(o.Lowers), err)
		}
	}
}
