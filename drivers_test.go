package strata

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

func TestDriversAreNamedOnce(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		seen := map[string]bool{}
		for _, d := range driversOf(goos) {
			if name := d.Name(); seen[name] || name == "" || strings.TrimSpace(name) != name {
				t.Errorf("%s: driver name %q", goos, name)
			}
			seen[d.Name()] = true
		}
	}
}

// TestAnotherDriver leads a machine of a driver that only the table knows through a whole life.
func TestAnotherDriver(t *testing.T) {
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "vm")
	if _, err := OpenVM(ctx, dir, OpenOptions{}); !errors.Is(err, ErrNoVM) {
		t.Errorf("open before start: %v", err)
	}
	vm, err := StartVM(ctx, VMOptions{Dir: dir, Driver: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	claim, err := vm.Claim(ctx, "web", nil)
	if err == nil {
		_, err = vm.SCSI().Attach(ctx, claim, "data", uvm.Disk{Path: filepath.Join(dir, "data.vhd")})
	}
	if err == nil {
		err = claim.Commit(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := StartVM(ctx, VMOptions{Dir: dir, Driver: "fake"}); !errors.Is(err, ErrRunning) {
		t.Errorf("second start: %v", err)
	}
	if err := RemoveVM(ctx, dir); !errors.Is(err, ErrRunning) {
		t.Errorf("removed while it runs: %v", err)
	}
	info, err := InspectVM(ctx, dir)
	if err != nil || info.Driver != "fake" || !info.Running {
		t.Errorf("inspected: %+v, %v", info, err)
	}
	os, limits, err := plan(ctx, dir)
	if err != nil || os != vmm.Linux || limits.SCSIControllers != vmmtest.LinuxLimits().SCSIControllers {
		t.Errorf("plan: %s, %+v, %v", os, limits, err)
	}
	if vm, err = OpenVM(ctx, dir, OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	if claim, err = vm.FindClaim("web"); err == nil {
		err = claim.Release(ctx, nil)
	}
	if left := vm.Machine().(*vmmtest.Fake).Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("released: %v, left %q", err, left)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	r, err := OpenRunner(ctx, dir, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Exec(ctx, vmm.ProcessSpec{Args: []string{"true"}}); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := KillVM(ctx, dir); err != nil {
		t.Error(err)
	}
	if _, err := InspectVM(ctx, dir); !errors.Is(err, ErrNoVM) {
		t.Errorf("after its end: %v", err)
	}
}

// TestKillVMByTheHolder: a process that has a VM open kills it without waiting for its own lock.
func TestKillVMByTheHolder(t *testing.T) {
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "vm")
	vm, err := StartVM(ctx, VMOptions{Dir: dir, Driver: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	claim, err := vm.Claim(ctx, "web", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveVM(ctx, dir); !errors.Is(err, ErrRunning) {
		t.Errorf("removed while it runs: %v", err)
	}
	if err := KillVM(ctx, dir); err != nil {
		t.Error(err)
	}
	if _, err := InspectVM(ctx, dir); !errors.Is(err, ErrNoVM) {
		t.Errorf("after its end: %v", err)
	}
	if err := errors.Join(claim.Release(ctx, nil), vm.Close()); err != nil {
		t.Error(err)
	}
}

// TestDriverOf finds whose machine a directory holds.
func TestDriverOf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the files are those of the drivers of Linux hosts")
	}
	machine := `{"id":"x","memoryMiB":256,"execPorts":8,"accel":"tcg"}`
	for name, tt := range map[string]struct {
		files map[string]string // by path
		want  string            // empty: is
		is    error
	}{
		"nothing":                        {nil, "", ErrNoVM},
		"only a journal":                 {map[string]string{"journal": ""}, "", ErrNoVM},
		"recorded":                       {map[string]string{"driver": "local\n"}, "local", nil},
		"a start that was cut off":       {map[string]string{"driver": "qemu\n"}, "qemu", nil},
		"the record wins over the files": {map[string]string{"driver": "qemu\n", "host/machine.json": machine}, "qemu", nil},
		"QEMU, before names":             {map[string]string{"machine.json": machine}, "qemu", nil},
		"QEMU, before names, damaged":    {map[string]string{"machine.json": "{"}, "qemu", nil},
		"this system, before names":      {map[string]string{"host/machine.json": `{"id":"x","boot":"y"}`}, "local", nil},
		"this system, never opened":      {map[string]string{"host/fs/x": ""}, "local", nil},
		"of another host":                {map[string]string{"driver": "hcs\n"}, "", errors.ErrUnsupported},
		"a record that was cut off":      {map[string]string{"driver": ""}, "", errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for path, content := range tt.files {
				path = filepath.Join(dir, path)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700),
					os.WriteFile(path, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			d, err := driverOf(t.Context(), dir)
			if !errors.Is(err, tt.is) {
				t.Fatalf("error %v, want %v", err, tt.is)
			}
			if tt.is == nil && d.Name() != tt.want {
				t.Errorf("driver %s, want %s", d.Name(), tt.want)
			}
			if info, err := InspectVM(t.Context(), dir); tt.want == "local" && len(tt.files) == 1 && tt.files["driver"] == "" &&
				(err != nil || !info.Idle) {
				t.Errorf("inspected: %+v, %v", info, err)
			}
		})
	}
}

// TestOneDirectoryOneDriver: the ledger of one machine is never put on another.
func TestOneDirectoryOneDriver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	vm, err := StartVM(t.Context(), VMOptions{Dir: dir, Driver: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHost(t.Context(), dir, OpenOptions{}); !errors.Is(err, vmm.ErrOccupied) &&
		!errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("this system opened in the directory of a VM: %v", err)
	}
	if _, err := StartVM(t.Context(), VMOptions{Dir: dir, Driver: "nonesuch"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a driver that is not there: %v", err)
	}
	if info, err := InspectVM(t.Context(), dir); err != nil || info.Driver != "fake" || !info.Running {
		t.Errorf("inspected: %+v, %v", info, err)
	}
}

// TestDryRun reports the Changes of a call, from what is known of the VM, and makes none.
func TestDryRun(t *testing.T) {
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "vm")
	attach := func(vm *uvm.UtilityVM, id, path string) {
		t.Helper()
		claim, err := vm.Claim(ctx, id, nil)
		if err == nil {
			_, err = vm.SCSI().Attach(ctx, claim, "data", uvm.Disk{Path: path})
		}
		if err == nil {
			err = claim.Commit(nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	report := func(c vmm.Change) error { got = append(got, c.String()); return nil }
	dry, err := DryRun(ctx, dir, report, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	attach(dry, "web", "/data.vhd")
	if _, err := dry.Machine().Exec(ctx, vmm.ProcessSpec{Args: []string{"id"}}); !errors.Is(err, vmm.ErrDryRun) {
		t.Errorf("a program: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a directory: %v", err)
	}
	vm, err := StartVM(ctx, VMOptions{Dir: dir, Driver: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	attach(vm, "web", "/data.vhd")
	defer vm.Close() // nobody waits for it
	before := vm.Machine().(*vmmtest.Fake).Leftovers()
	if dry, err = DryRun(ctx, dir, report, OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	attach(dry, "db", "/other.vhd")
	claim, err := dry.FindClaim("web")
	if err == nil {
		err = claim.Release(ctx, nil)
	}
	if err != nil {
		t.Error(err)
	}
	want := []string{"add scsi 0:0 /data.vhd (rw)", "add scsi 0:1 /other.vhd (rw)", "remove scsi 0:0 /data.vhd (rw)"}
	if !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	if after := vm.Machine().(*vmmtest.Fake).Leftovers(); !slices.Equal(after, before) {
		t.Errorf("the VM has %q, had %q", after, before)
	}
	if dry, err = DryRun(ctx, dir, func(vmm.Change) error { return errors.ErrUnsupported }, OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	if claim, err = dry.FindClaim("web"); err == nil {
		err = claim.Release(ctx, nil)
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a report that fails: %v", err)
	}
}
