// Command say prints the file called "name" that lies next to it. It is put into file systems that a
// guest mounts, so that a test sees that the guest reads what it should.
package main

import (
	"os"
	"path/filepath"
)

func main() {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), "name"))
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	os.Stdout.Write(b)
}
