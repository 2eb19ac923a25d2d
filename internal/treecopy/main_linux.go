package treecopy

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Main runs the operation of args, the arguments after Flag, and returns the exit code:
//
//	stat ROOT PATH, follow ROOT PATH   prints what there is at a path
//	pack ROOT PATH AS                  writes a tar to standard output
//	unpack ROOT DIR, restore ROOT DIR  reads one from standard input; restore gives files the owners it names
//	fill ROOT PATH DIR                 copies a folder
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	skip := func(name, why string) { fmt.Fprintf(stderr, "%.200q is left out: %s\n", name, why) }
	err := errors.New("wrong arguments")
	switch {
	case len(args) == 3 && (args[0] == "stat" || args[0] == "follow"):
		var what string
		if what, err = Stat(args[1], args[2], args[0] == "follow"); err == nil {
			_, err = fmt.Fprintln(stdout, what)
		}
	case len(args) == 4 && args[0] == "pack":
		err = PackFrom(stdout, args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "unpack":
		err = UnpackInto(stdin, args[1], args[2], Ours, skip)
	case len(args) == 3 && args[0] == "restore":
		err = UnpackInto(stdin, args[1], args[2], Archived, skip)
	case len(args) == 4 && args[0] == "fill":
		err = Fill(args[1], args[2], args[3])
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// Run calls Main if args say that this process was started for it; otherwise handled is false.
func Run(args []string) (code int, handled bool) {
	if len(args) < 2 || args[1] != Flag {
		return 0, false
	}
	return Main(args[2:], os.Stdin, os.Stdout, os.Stderr), true
}
