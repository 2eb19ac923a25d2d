package main

import "github.com/stratavm/strata/internal/guest/guestmain"

// guestMain runs the guest's side of things when this process is that, and returns its exit code. strata-init
// is what guests boot where it is found; strata carries the agent too, so that it works alone.
func guestMain() (code int, handled bool) { return guestmain.Main() }
