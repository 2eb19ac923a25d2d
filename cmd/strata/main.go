// Command strata gives containers in utility VMs their root filesystems. Started as PID 1 in a Linux
// guest it is the guest's agent.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("strata", os.Args, os.Getpid())
}
