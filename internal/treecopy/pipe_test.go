package treecopy_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/treecopy"
)

// TestPipe: whichever end fails, the other one ends too, and the cause is returned.
func TestPipe(t *testing.T) {
	bad := errors.New("bad")
	all := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	endless := func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
	}
	for name, tt := range map[string]struct {
		send    func(io.Writer) error
		receive func(io.Reader) error
		want    error
	}{
		"both end":         {func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }, all, nil},
		"the sender fails": {func(io.Writer) error { return bad }, all, bad},
		"the sender fails, and the receiver has words of its own": {func(io.Writer) error { return bad },
			func(r io.Reader) error { _, _ = io.ReadAll(r); return errors.New("cut short") }, bad},
		"the receiver fails":         {endless, func(io.Reader) error { return bad }, bad},
		"the receiver needs no more": {endless, func(r io.Reader) error { return nil }, nil},
		"the receiver has read a part": {endless,
			func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 10); return err }, nil},
		"the sender fails on its own": {func(w io.Writer) error { return bad }, func(io.Reader) error { return nil }, bad},
	} {
		if err := treecopy.Pipe(tt.send, tt.receive); !errors.Is(err, tt.want) || err == nil != (tt.want == nil) ||
			err != nil && strings.Count(err.Error(), "bad") != 1 {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}
