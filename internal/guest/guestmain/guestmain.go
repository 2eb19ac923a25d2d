// Package guestmain makes a program one that a Linux guest can boot. What imports it carries the guest's agent, and
// package bootimage recognises it by Marker.
package guestmain

import (
	"context"
	"fmt"
	"os"

	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/treecopy"
)

// Marker is in the binaries of programs that call Main, and only in these.
const Marker = "org.stratavm.strata/carries-the-guest-agent/1"

// identify is the argument that Main answers with Marker.
const identify = "--strata-agent"

// Main is to be called first thing in main. When this process is the first one of a VM, whose kernel calls it
// /init, Main does that work and returns the exit code and true; the caller then exits.
func Main() (code int, handled bool) {
	if code, handled = treecopy.Run(os.Args); handled {
		return code, true
	}
	switch {
	case os.Getpid() == 1 && len(os.Args) > 0 && os.Args[0] == "/init":
		return guest.Main(context.Background()), true
	case len(os.Args) == 2 && os.Args[1] == identify:
		fmt.Println(Marker)
		return 0, true
	}
	return 0, false
}
