package strata_test

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
	os.Exit(leaktest.Main(run{m}))
}

type run struct{ m *testing.M }

// Run runs the tests, and the examples with what they work with.
func (r run) Run() int {
	makeExamples()
	return r.m.Run()
}
