package e2e

import (
	"os"
	"testing"

	"github.com/stratavm/strata/internal/guest/guestmain"
	"github.com/stratavm/strata/test/leaktest"
)

// TestMain lets the test program be the first process of a container.
func TestMain(m *testing.M) {
	if code, handled := guestmain.Main(); handled {
		os.Exit(code)
	}
	os.Exit(leaktest.Main(m))
}
