package bootid_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/stratavm/strata/internal/bootid"
)

// TestRead: everybody who asks during one boot is told the same.
func TestRead(t *testing.T) {
	want, err := bootid.Read()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil || want == "" {
		t.Fatalf("%q, %v", want, err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got, err := bootid.Read(); got != want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		})
	}
	all.Wait()
}
