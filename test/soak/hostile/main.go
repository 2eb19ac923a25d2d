// Command hostile is the /init of a guest that turns against its host. It is Strata's agent up to the moment it is
// told to, and then lies, floods or stalls in one of the Modes of package hostiles: from the first session on
// where the kernel command line has the word hostile=MODE, or where a host runs the "program" hostiles.Control.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/guest/guestmain"
	"github.com/stratavm/strata/test/soak/hostile/hostiles"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Println(guestmain.Marker)
		return
	}
	var h hostiles.Guest
	err := guest.Run(context.Background(), guest.Config{Session: h.Session})
	fmt.Fprintln(os.Stderr, "hostile:", err)
	os.Exit(1) // the end of PID 1 is that of the VM
}
