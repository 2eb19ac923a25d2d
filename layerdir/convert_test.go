package layerdir_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/layerdir"
)

type entry = treetest.Entry

// empty fails the test when dir has anything in it but what is named.
func empty(t *testing.T, dir string, but ...string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if len(but) == 0 || f.Name() != but[0] {
			t.Errorf("left behind: %s", filepath.Join(dir, f.Name()))
		}
	}
}

// failing is a stream that fails, or cancels a context, after some bytes.
type failing struct {
	r     io.Reader
	after int
	err   error
	do    func()
}

func (f *failing) Read(b []byte) (int, error) {
	if f.after <= 0 {
		if f.do != nil {
			f.do()
			f.do = nil
		}
		if f.err != nil {
			return 0, f.err
		}
	}
	n, err := f.r.Read(b[:min(len(b), max(f.after, 512))])
	f.after -= n
	return n, err
}

// TestFailedConversionLeavesNothing: whatever ends a conversion, and whenever, no file or folder of it stays.
func TestFailedConversionLeavesNothing(t *testing.T) {
	tar := treetest.Tar(t, entry{Name: "a", Body: strings.Repeat("a", 50_000)}, entry{Name: "b", Body: "b"})
	broken := errors.New("the network is gone")
	for _, format := range []layerdir.Format{layerdir.VHD, layerdir.EROFS} {
		for _, after := range []int{0, 512, 10_000, 53_000} {
			for _, kind := range []string{"error", "cancel", "cut"} {
				base := t.TempDir()
				ctx, cancel := context.WithCancelCause(t.Context())
				in, want := &failing{r: bytes.NewReader(tar), after: after}, broken
				switch kind {
				case "error":
					in.err = broken
				case "cancel":
					in.do = func() { cancel(broken) }
				case "cut":
					in.err, want = io.EOF, io.ErrUnexpectedEOF
				}
				_, err := layerdir.Convert(ctx,
					layerdir.Options{Format: format, Tar: in, Dir: filepath.Join(base, "parent", "layer")})
				if !errors.Is(err, want) {
					t.Errorf("%s, %s after %d bytes: got %v, want %v", format, kind, after, err, want)
				}
				empty(t, base)
				cancel(nil)
			}
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	good := treetest.Tar(t, entry{Name: "a", Body: "12345"})
	base := t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    layerdir.Options
		want error
		text string
	}{
		{"format", layerdir.Options{Format: "squashfs", Tar: bytes.NewReader(good), Dir: filepath.Join(base, "l")}, nil,
			"squashfs"},
		{"limit", layerdir.Options{Tar: bytes.NewReader(good), Dir: filepath.Join(base, "l"), MaxBytes: 4},
			layertree.ErrTooLarge, "4 bytes"},
		{"a file in the way", layerdir.Options{Tar: bytes.NewReader(good), Dir: filepath.Join(base, "file", "l")}, nil,
			"file"},
		{"a file as the folder", layerdir.Options{Tar: bytes.NewReader(good), Dir: filepath.Join(base, "file")}, nil, "file"},
		{"unterminated", layerdir.Options{Tar: bytes.NewReader(good[:1536]), Dir: filepath.Join(base, "l")},
			io.ErrUnexpectedEOF, "truncated"},
	} {
		if _, err := layerdir.Convert(t.Context(), c.o); err == nil || (c.want != nil && !errors.Is(err, c.want)) ||
			!strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		empty(t, base, "file")
	}
}

func TestConvertResult(t *testing.T) {
	tar := treetest.Tar(t, entry{Name: "a", Body: "12345"})
	for _, format := range []layerdir.Format{layerdir.VHD, layerdir.EROFS} {
		for _, check := range []bool{false, true} {
			dir := filepath.Join(t.TempDir(), "layer ü,=")
			var seen int64
			res, err := layerdir.Convert(t.Context(),
				layerdir.Options{Format: format, Tar: bytes.NewReader(tar), Dir: dir, Verity: check,
					Progress: func(n int64) {
						if n < seen {
							t.Errorf("progress goes back from %d to %d", seen, n)
						}
						seen = n
					}})
			if err != nil {
				t.Fatal(err)
			}
			if seen != int64(len(tar)) {
				t.Errorf("%d of %d bytes were reported", seen, len(tar))
			}
			f, err := os.Open(res.Path)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			mode := os.FileMode(0o644) // in a folder that is closed to others
			if runtime.GOOS == "windows" {
				mode = 0o666 // writable or not is all that there is
			}
			if err != nil || st.Size() != res.Bytes || st.Mode().Perm() != mode {
				t.Errorf("%s: %d bytes, mode %v, %v; result %+v", format, st.Size(), st.Mode(), err, res)
			}
			if format == layerdir.VHD {
				if _, err := vhd.Validate(f, st.Size()); err != nil {
					t.Error(err)
				}
			}
			info, err := layerdir.ReadVerity(dir, format)
			if check && err == nil {
				if err := verity.Check(t.Context(), f, info); err != nil {
					t.Error(err)
				}
			}
			if err := f.Close(); err != nil { // Windows replaces no file that is open
				t.Error(err)
			}
			if !check {
				if !errors.Is(err, os.ErrNotExist) || res.Verity != nil {
					t.Errorf("a hash tree nobody asked for: %+v, %v", info, err)
				}
				continue
			}
			if err != nil || res.Verity == nil || info != *res.Verity {
				t.Fatalf("recorded %+v, %v; result %+v", info, err, res.Verity)
			}
			// A conversion without a tree takes the record away.
			if _, err := layerdir.Convert(t.Context(),
				layerdir.Options{Format: format, Tar: bytes.NewReader(tar), Dir: dir}); err != nil {
				t.Fatal(err)
			}
			if _, err := layerdir.ReadVerity(dir, format); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a record of a layer that is gone: %v", err)
			}
		}
	}
}

// TestConvertShares: whoever is to read the layer may do so before it is there, and when that fails
// there is no layer.
func TestConvertShares(t *testing.T) {
	tar := treetest.Tar(t, entry{Name: "a", Body: "12345"})
	refused := errors.New("refused")
	for _, fails := range []error{refused, nil} {
		dir := filepath.Join(t.TempDir(), "layer")
		var shared os.FileInfo
		res, err := layerdir.Convert(t.Context(), layerdir.Options{Tar: bytes.NewReader(tar), Dir: dir,
			Share: func(_ context.Context, file string) (err error) {
				if _, err := os.Stat(filepath.Join(dir, "layer.vhd")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the layer is there before it is shared: %v", err)
				}
				shared, err = os.Stat(file)
				return errors.Join(err, fails)
			}})
		if !errors.Is(err, fails) {
			t.Fatalf("error %v, want %v", err, fails)
		}
		if fails != nil {
			if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			continue
		}
		st, err := os.Stat(res.Path)
		if err != nil || shared == nil || shared.Size() != st.Size() {
			t.Errorf("shared %v, made %v, %v", shared, st, err)
		}
	}
}
