package plaintext_test

import (
	"testing"

	"github.com/stratavm/strata/internal/plaintext"
)

// TestHead: the beginning is kept, and whoever writes more is not told.
func TestHead(t *testing.T) {
	h := plaintext.NewHead(5)
	for _, s := range []string{"abc", "", "def", "ghi"} {
		if n, err := h.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("write of %q: %d, %v", s, n, err)
		}
	}
	if h.String() != "abcde" || string(h.Bytes()) != "abcde" {
		t.Errorf("%q is kept", h.String())
	}
}
