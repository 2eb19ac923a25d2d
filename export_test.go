package strata

import "github.com/stratavm/strata/vmm/vmmtest"

// The line that a new driver takes, beside its folder: from here on the tests of this package start VMs with
// VMOptions.Driver "fake".
func init() { drivers = append(drivers, &vmmtest.Driver{}) }
