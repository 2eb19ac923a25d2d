package hcs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/vmm/hcs"
)

func TestFileID(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "слой")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file} {
		if err := hcs.FileID(path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "none"), "nul\x00inside"} {
		if err := hcs.FileID(path); err == nil {
			t.Errorf("%q has an identity", path)
		}
	}
	if err := hcs.FileID(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

func TestTimeZoneOfThisComputer(t *testing.T) {
	zone, err := hcs.TimeZone()
	if err != nil || zone.StandardDate == nil || zone.DaylightDate == nil {
		t.Errorf("%+v, %v", zone, err)
	}
	if zone.Bias < -14*60 || zone.Bias > 14*60 {
		t.Errorf("bias of %d minutes", zone.Bias)
	}
}
