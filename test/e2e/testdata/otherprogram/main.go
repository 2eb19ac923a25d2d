// Command otherprogram uses the library and is not strata: see TestOtherProgram. Its arguments are the state
// directory of a VM and a cache.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	vm, err := strata.StartVM(ctx, strata.VMOptions{Dir: os.Args[1], Boot: strata.BootOptions{CacheDir: os.Args[2]}})
	if errors.Is(err, strata.ErrNoInit) {
		fmt.Println("refused:", err)
		os.Exit(3)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer vm.Shutdown(ctx)
	p, err := vm.Machine().Exec(ctx, vmm.ProcessSpec{Args: []string{"/init", "--strata-agent"}, Stdout: os.Stdout})
	if err == nil {
		_, err = p.Wait(ctx)
	}
	if err != nil {
		fmt.Println(err)
	}
}
