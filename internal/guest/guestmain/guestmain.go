// Package guestmain makes a program usable as the init of a Linux guest. A program that imports it contains the guest's
// agent, and package bootimage recognises it by Marker.
package guestmain

import (
	"context"
	"fmt"
	"os"

	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/treecopy"
)

// Marker is a string that only the binaries of programs that call Main contain.
const Marker = "org.stratavm.strata/carries-the-guest-agent/1"

// identify is the argument that Main answers with Marker.
const identify = "--strata-agent"

// Main must be called first in main. If this process is PID 1 of a VM, started as /init, or a helper process of this
// program, Main does its work and returns the exit code and true; the caller must then exit.
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
