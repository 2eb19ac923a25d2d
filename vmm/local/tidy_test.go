package local_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

// files lists what is in a directory, folders with a slash at the end.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			rel += "/"
		}
		out = append(out, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTidy: what a process leaves that dies before a mount is made, while a record is written, or after a
// mount is gone, goes; mounts stay as they are. In the end nothing is left, foreign mounts included.
func TestTidy(t *testing.T) {
	dir, source := t.TempDir(), t.TempDir()
	mem := &memory{}
	open := func() *local.Machine {
		m, err := local.Open(local.Options{Dir: dir, BootID: "boot", Mounter: mem})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	empty := files(t, dir)
	mount := func(name string) vmm.Change {
		return vmm.Change{Op: vmm.Add, Device: vmm.Plan9Share{Name: name, Path: source},
			Mount: vmm.MappedDirectory{Share: name, MountPath: "/run/" + name}}
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(m.Apply(t.Context(), mount("kept")))
	want := files(t, dir)
	// As if the mounts had not been made yet; of one the directory is gone as well.
	must(m.Apply(t.Context(), mount("one")), m.Apply(t.Context(), mount("two")),
		m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: vmm.Plan9Share{Name: "a", Path: source},
			Mount: vmm.MappedDirectory{Share: "a", MountPath: "/deep/a/b"}}))
	for _, target := range []string{"/run/one", "/run/two", "/deep/a/b"} {
		must(mem.Unmount(t.Context(), m.HostPath(target)))
	}
	must(os.Remove(m.HostPath("/run/two")), os.Remove(m.HostPath("/deep/a/b")))
	for _, share := range []string{"one", "two", "a"} { // devices are removed with the ledger
		must(m.Apply(t.Context(), vmm.Change{Op: vmm.Remove, Device: vmm.Plan9Share{Name: share, Path: source}}))
	}
	for _, kind := range []string{"devices", "mounts"} {
		must(os.WriteFile(filepath.Join(dir, kind, atomicfile.Prefix+"1"), []byte("{"), 0o600))
	}
	if slices.Equal(files(t, dir), want) {
		t.Fatal("there is nothing to tidy")
	}
	m = open()
	must(m.Tidy())
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("after tidying:\n%q, want\n%q", got, want)
	}
	must(mem.add(m.HostPath("/run/kept/foreign")))
	must(m.Shutdown(t.Context()))
	if left, _ := mem.Mounts(dir); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
	if got := files(t, dir); !slices.Equal(got, empty) {
		t.Errorf("after Shutdown:\n%q, want\n%q", got, empty)
	}
}
