package layers

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// A root may be named rootfs; it is found by the path that it was mounted with, and by the one returned.
func TestRootNamedRootfs(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	folders := []string{w.layers[0].Folder, w.scratch("a")}
	for _, path := range []string{"/run/gcs/c/rootfs", "/run/gcs/c/rootfs/rootfs"} {
		if _, err := MountContainerLayers(t.Context(), folders, "/run/gcs/c/rootfs", w.vm); err != nil {
			t.Fatal(err)
		}
		if err := UnmountContainerLayers(t.Context(), folders, path, w.vm, UnmountOperationAll); err != nil {
			t.Errorf("unmount of %s: %v", path, err)
		}
		w.checkEmpty()
	}
}

// A layer that was imported again is not taken for the one that the VM still has, be it retained or mounted.
func TestReplacedLayer(t *testing.T) {
	for name, limit := range map[string]func(*vmm.Limits){
		"retained": func(l *vmm.Limits) { l.VPMEMRetained = true },
		"scsi":     func(l *vmm.Limits) { l.VPMEMDevices = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			limits := vmmtest.LinuxLimits()
			limit(&limits)
			w := newWorld(t, vmm.Linux, limits, 1)
			first := w.mustMount(w.request("a", w.layers))
			if name == "retained" { // nobody uses it any more, but there it is
				if err := first.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(w.layers[0].Folder, layerVHD)
			if err := os.WriteFile(file+".new", make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
			later := time.Now().Add(time.Second) // two imports are never within one tick of the clock
			if err := os.Chtimes(file, later, later); err != nil {
				t.Fatal(err)
			}
			w.f.Script(nil)
			w.mustMount(w.request("b", w.layers))
			devices := 0
			for _, c := range w.f.Log() {
				if c.Device != nil {
					devices++
				}
			}
			if devices != 2 { // the new layer and the scratch
				t.Errorf("changes of the second mount: %v", w.f.Log())
			}
		})
	}
}
