package e2e

import (
	"os"
	"testing"

	"github.com/stratavm/strata/test/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }
