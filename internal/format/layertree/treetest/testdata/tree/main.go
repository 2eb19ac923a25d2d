// Command tree writes a description of the directory trees it is given, as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

func main() {
	for _, dir := range os.Args[1:] {
		d, err := treetest.List(dir)
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(d)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
