package uvm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestFilesOfOneFolder shares files with a Windows guest: those of one folder are one share, whose list grows.
func TestFilesOfOneFolder(t *testing.T) {
	f := vmmtest.New("vm", vmm.Windows, vmm.Limits{VSMB: true})
	dir := t.TempDir()
	vm := openFake(t, f, dir)
	c := mustClaim(t, vm, "a")
	share := func(file string) (*Lease, error) {
		return vm.VSMB().ShareFile(t.Context(), c, "file", file, ReadOnlyShare)
	}
	must := func(file string) *Lease {
		t.Helper()
		le, err := share(file)
		if err != nil {
			t.Fatal(err)
		}
		return le
	}
	listed := func(want ...string) {
		t.Helper()
		obs, err := f.Observe(t.Context())
		if err != nil || len(obs.Devices) != 1 {
			t.Fatalf("observed %+v, %v", obs, err)
		}
		s := obs.Devices[0].(vmm.VSMBShare)
		if s.Path != `C:\d` || !s.Options.RestrictFileAccess || !s.Options.SingleFileMapping ||
			!slices.Equal(s.AllowedFiles, want) {
			t.Errorf("shared is %+v, want %q", s, want)
		}
	}
	for _, odd := range []string{"", "file", `C:\d\`} {
		if _, err := share(odd); err == nil {
			t.Errorf("%q is shared", odd)
		}
	}
	one := must(`C:\d\one`)
	listed(`C:\d\one`)
	must(`c:\D\ONE`) // is on the list
	two := must(`C:\d\two`)
	listed(`C:\d\one`, `C:\d\two`)
	if !strings.HasSuffix(one.GuestPath(), `\one`) || !strings.HasSuffix(two.GuestPath(), `\two`) {
		t.Errorf("the guest sees them at %s and %s", one.GuestPath(), two.GuestPath())
	}

	// A file that the host refuses is not shared, and the others still are.
	f.FailNth(1, vmmtest.RefuseFirst)
	if _, err := share(`C:\d\three`); !errors.Is(err, vmmtest.ErrInjected) {
		t.Errorf("a refused file: %v", err)
	}
	listed(`C:\d\one`, `C:\d\two`)
	if err := c.Release(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, f, vm)
}
