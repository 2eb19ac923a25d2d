package layers

import (
	"errors"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/hcsschema"
)

func TestV1(t *testing.T) {
	r := Request{Layers: []Layer{{Folder: `C:\l\top`}, {Folder: `C:\l\base`}}, Scratch: `C:\c\a`, Host: ids{}}
	got, err := MountV1(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := V1Storage{LayerFolderPath: `C:\c\a`, Layers: []hcsschema.LayerV1{
		{ID: `id-of-top`, Path: `C:\l\top`}, {ID: `id-of-base`, Path: `C:\l\base`}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, edit := range map[string]func(*Request){
		"no layers":  func(r *Request) { r.Layers = nil },
		"no scratch": func(r *Request) { r.Scratch, r.ID = "", "a" },
		"no host":    func(r *Request) { r.Host = nil },
		"relative":   func(r *Request) { r.Scratch = "a" },
	} {
		if name == "no host" && runtime.GOOS == "windows" {
			continue // it is this one
		}
		bad := r
		edit(&bad)
		if _, err := MountV1(t.Context(), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for op, ok := range map[UnmountOperation]bool{UnmountOperationAll: true, UnmountOperationSCSI: false, 0: false} {
		if err := UnmountV1(op); (err == nil) != ok {
			t.Errorf("UnmountV1(%d): %v", op, err)
		}
	}
}
