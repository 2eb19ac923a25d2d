package store_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

// TestRecordOfEarlierVersion: layers that were recorded with SHA-256 are checked by it.
func TestRecordOfEarlierVersion(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	want := request(t, "a", 0, 1)
	want.Formats = []store.Format{{File: layerdir.EROFS}}
	img := mustImport(t, s, want)
	folders, err := s.Folders(img, want.Formats[0])
	if err != nil {
		t.Fatal(err)
	}
	file := layerFile(t, s, folders[0])
	recordFile := filepath.Join(filepath.Dir(file), "record.json")
	b, err := os.ReadFile(recordFile)
	if err != nil {
		t.Fatal(err)
	}
	record := map[string]any{}
	if err := json.Unmarshal(b, &record); err != nil {
		t.Fatal(err)
	}
	for _, sum := range []string{"hash", "outline"} {
		if digest, _ := record[sum].(string); !strings.HasPrefix(digest, "crc32:") {
			t.Errorf("%s is %q: what the store makes itself goes through SHA-256 once more", sum, digest)
		}
	}
	record["hash"], record["outline"] = earlierDigest(t, file), earlierDigest(t, filepath.Join(filepath.Dir(file), "outline"))
	if b, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(recordFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	whole(t, s)
	damageOne(t, file)
	if r, err := s.Check(t.Context()); err != nil || len(r.Problems) != 1 {
		t.Errorf("a byte is changed: %+v, %v", r, err)
	}
}

// earlierDigest is that of a file without a block of zeroes.
func earlierDigest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	var place [8]byte
	for at := 0; at < len(b); at += 64 << 10 {
		binary.BigEndian.PutUint64(place[:], uint64(at))
		h.Write(place[:])
		h.Write(b[at:min(at+64<<10, len(b))])
	}
	binary.BigEndian.PutUint64(place[:], uint64(len(b)))
	h.Write(place[:])
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// damageOne changes the lowest bit of a byte in the middle of a file.
func damageOne(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamageAnywhere changes a bit in each block of a layer of several.
func TestDamageAnywhere(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	want := request(t, "a", 0, 1)
	want.Formats = []store.Format{{File: layerdir.VHD}}
	mustImport(t, s, want)
	files, err := filepath.Glob(filepath.Join(s.Dir(), "layers", "sha256", "*", "*", "layer.vhd"))
	if err != nil || len(files) != 1 {
		t.Fatalf("layers %q, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(511); at < st.Size(); at += 64 << 10 {
		var b [1]byte
		flip := func() {
			if _, err := f.ReadAt(b[:], at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x10
			if _, err := f.WriteAt(b[:], at); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		if r, err := s.Check(t.Context()); err != nil || len(r.Problems) != 1 {
			t.Errorf("byte %d is changed: %+v, %v", at, r, err)
		}
		flip()
	}
	whole(t, s)
}
