package main

import "github.com/stratavm/strata/internal/guest/guestmain"

// guestMain runs the guest's agent if this process is one, and returns its exit code. Guests boot strata-init if it is
// found; strata contains the agent too, so that it works without it.
func guestMain() (code int, handled bool) { return guestmain.Main() }
