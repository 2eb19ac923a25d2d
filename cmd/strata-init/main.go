// Command strata-init is the first process of a Linux guest, and of containers on a Linux host: the agent that
// mounts and runs programs there, and nothing else. Nobody starts it by hand. Programs that use package strata
// find it beside themselves, in PATH, or by STRATA_INIT.
package main

import (
	"fmt"
	"os"

	"github.com/stratavm/strata/internal/guest/guestmain"
)

func main() {
	if code, handled := guestmain.Main(); handled {
		os.Exit(code)
	}
	fmt.Fprintln(os.Stderr, "strata-init: this is the first process of Strata's guests; put it beside the program "+
		"that starts VMs, or into PATH, or name it by STRATA_INIT")
	os.Exit(2)
}
