// Command euid says as whom it runs: in an image it is root's, with the set-user-id bit.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Println("Effective uid:", os.Geteuid()) }
