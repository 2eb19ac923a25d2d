// Command drawing is the /init of a guest that draws random numbers when it is renewed, before and after that, and
// otherwise Strata's agent: what it draws before is what a VM of a template would draw that is not renewed.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/guest/guestmain"
)

func main() {
	switch {
	case os.Getpid() == 1:
		err := guest.Run(context.Background(), guest.Config{Hold: hold, Renew: renew})
		fmt.Fprintln(os.Stderr, "drawing:", err)
		os.Exit(1) // the end of PID 1 is that of the VM
	case len(os.Args) == 3 && os.Args[1] == "show":
		b, err := os.ReadFile(os.Args[2])
		check(err)
		os.Stdout.Write(b)
	case len(os.Args) == 2 && os.Args[1] == "process":
		own()
	default:
		fmt.Println(guestmain.Marker)
	}
}

func check(err error) {
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// hold begins a period in which the kernel does not reseed by itself.
func hold() {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	const rndReseedCRNG = 0x5207
	if _, err := unix.IoctlRetInt(int(f.Fd()), rndReseedCRNG); err != nil {
		panic(err)
	}
}

func renew(really func() error) error {
	if err := draw("/run/before"); err != nil {
		return err
	}
	if err := really(); err != nil {
		return err
	}
	return draw("/run/after")
}

// draw writes what is drawn to a file: a line for each thing, with its name.
func draw(path string) error {
	var out bytes.Buffer
	var random [32]byte
	rand.Read(random[:]) // it does not fail
	fmt.Fprintf(&out, "getrandom %x\n", random)
	uuid, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	fmt.Fprintf(&out, "uuid %s", uuid)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The agent waits for all children.
	_, err = os.StartProcess("/proc/self/exe", []string{"drawing", "process"}, &os.ProcAttr{Files: []*os.File{nil, w, w}})
	if err := w.Close(); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(&out, r); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o600)
}

// own prints what the kernel has drawn for this process: AT_RANDOM, and where its parts are.
func own() {
	auxv, err := os.ReadFile("/proc/self/auxv")
	check(err)
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		const atRandom = 25
		if binary.NativeEndian.Uint64(auxv) != atRandom {
			continue
		}
		mem, err := os.Open("/proc/self/mem")
		check(err)
		var b [16]byte
		_, err = mem.ReadAt(b[:], int64(binary.NativeEndian.Uint64(auxv[8:])))
		check(err)
		fmt.Printf("AT_RANDOM %x\n", b)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	check(err)
	for line := range strings.Lines(string(maps)) {
		if f := strings.Fields(line); len(f) == 6 && (f[5] == "[stack]" || f[5] == "[vdso]") {
			fmt.Printf("%s %s\n", f[5], f[0])
		}
	}
}
