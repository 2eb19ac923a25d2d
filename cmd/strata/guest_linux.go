package main

import (
	"context"
	"os"

	"github.com/stratavm/strata/internal/guest"
)

// guestMain runs the guest's side of things when this process is that, and returns its exit code: the
// first process of a VM, whose kernel calls us /init, or a stage that the agent started of us.
func guestMain() (code int, handled bool) {
	if code, handled = guest.Stage(os.Args); handled {
		return code, true
	}
	if os.Getpid() == 1 && len(os.Args) > 0 && os.Args[0] == "/init" {
		return guest.Main(context.Background()), true
	}
	return 0, false
}
