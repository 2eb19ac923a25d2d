package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/uvm"
)

// completeCommand is the hidden command by which the scripts of "strata completion" query completions. Its arguments
// are the words typed by the user; the last one is the word at the cursor.
const completeCommand = "__complete"

// completeTimeout bounds how long the Tab key waits.
const completeTimeout = 3 * time.Second

// completable matches words that need no quoting in a shell. Other names, which may come from an untrusted image, are
// not offered: a shell would interpret them.
var completable = regexp.MustCompile(`^[A-Za-z0-9_./:@=+,-]+$`)

// candidate is a word that can be typed next.
type candidate struct{ word, about string }

// values are the possible values of flags.
var values = map[string][]string{
	"isolation": {"hypervisor", "process"},
	"accel":     {"auto", "kvm", "tcg"},
	"transport": {"auto", "vsock", "serial"},
	"guest":     {"linux", "windows"},
	"format":    {"erofs", "vhd", "dir", "erofs+verity", "vhd+verity"},
}

// arguments are the functions that list a command's arguments, by the command as typed: one for each argument; the last
// one applies to all that follow.
var arguments = map[string][]func(*completion) []string{
	"vm start": {(*completion).vms, nil}, "vm inspect": {(*completion).vms, nil}, "vm stop": {(*completion).vms, nil},
	"recover":       {(*completion).vms},
	"exec":          {(*completion).programs, nil},
	"inspect":       {(*completion).lives},
	"start":         {(*completion).lives},
	"stop":          {(*completion).lives},
	"restart":       {(*completion).lives},
	"kill":          {(*completion).lives},
	"wait":          {(*completion).lives},
	"rm":            {(*completion).lives},
	"stats":         {(*completion).lives},
	"attach":        {(*completion).lives, nil},
	"logs":          {(*completion).lives, nil},
	"top":           {(*completion).lives, nil},
	"unmount":       {(*completion).containers},
	"run":           {(*completion).images, nil},
	"mount":         {nil, (*completion).images},
	"pull":          {(*completion).images},
	"image inspect": {(*completion).images},
	"image rm":      {(*completion).images},
}

// completion is a command line to be completed.
type completion struct {
	ctx     context.Context
	e       *env
	cmd     *cli.Command
	path    []string          // of cmd
	flags   map[string]string // those typed, by their first name
	args    []string          // those typed, without the one at the cursor
	current string            // at the cursor
}

// complete prints the candidates for the next word, one per line, followed by a tab and a description. It has no side
// effects and ignores errors: without candidates, the shell offers files.
func (e *env) complete(ctx context.Context, words []string) {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	for _, c := range e.candidates(ctx, words) {
		fmt.Fprintf(e.stdout, "%s\t%s\n", c.word, printable(c.about))
	}
}

// candidates returns the words that can be typed next, in order.
func (e *env) candidates(ctx context.Context, words []string) []candidate {
	if len(words) == 0 {
		return nil
	}
	c := &completion{ctx: ctx, e: e, cmd: e.root(), flags: map[string]string{}}
	c.current = words[len(words)-1]
	if c.current == `""` { // from PowerShell versions that cannot pass an empty argument
		c.current = ""
	}
	flag, ok := c.read(words[:len(words)-1])
	if !ok {
		return nil
	}
	all := c.next(flag)
	return slices.DeleteFunc(all, func(w candidate) bool {
		return !strings.HasPrefix(w.word, c.current) || !completable.MatchString(w.word)
	})
}

// read parses the words before the cursor. flag is the one whose value is at the cursor, if any. It returns false if
// the cursor is in the command line of the program to run.
func (c *completion) read(words []string) (flag string, ok bool) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		if w == "--" || c.inProgram() {
			return "", false
		}
		if len(w) < 2 || w[0] != '-' {
			sub := c.cmd.Command(w)
			if sub == nil || len(c.args) > 0 {
				c.args = append(c.args, w)
				continue
			}
			c.cmd, c.path = sub, append(c.path, sub.Name)
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(w, "-"), "=")
		name, takes := c.flag(name)
		if takes && !given {
			if i++; i == len(words) {
				return name, true
			}
			value = words[i]
		}
		c.flags[name] = value
	}
	return "", !c.inProgram()
}

// inProgram reports whether the next word belongs to the program to run: the command's own arguments are complete.
func (c *completion) inProgram() bool {
	return c.cmd.StopOnNthArg != nil && len(c.args) >= *c.cmd.StopOnNthArg
}

// known returns the flags of the command and the global flags.
func (c *completion) known() []cli.Flag {
	flags := slices.Clone(c.cmd.Flags)
	if len(c.path) > 0 {
		flags = append(flags, c.e.root().Flags...)
	}
	return flags
}

// flag returns the first name of a flag, and whether it takes a value.
func (c *completion) flag(name string) (first string, takesValue bool) {
	for _, f := range c.known() {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return f.Names()[0], ok && d.TakesValue()
		}
	}
	return name, false
}

// next returns the words that can follow. flag is the one whose value is to be typed, or empty.
func (c *completion) next(flag string) []candidate {
	if flag != "" {
		return c.value("", flag)
	}
	if name, _, given := strings.Cut(c.current, "="); given && strings.HasPrefix(name, "-") {
		flag, _ := c.flag(strings.TrimLeft(name, "-"))
		return c.value(name+"=", flag)
	}
	var out []candidate
	if strings.HasPrefix(c.current, "-") {
		for _, f := range c.known() {
			d, _ := f.(cli.DocGenerationFlag)
			out = append(out, candidate{"--" + f.Names()[0], d.GetUsage()})
		}
		return append(out, candidate{"--help", "show help"})
	}
	if len(c.args) == 0 {
		for _, sub := range c.cmd.VisibleCommands() {
			out = append(out, candidate{sub.Name, sub.Usage})
		}
	}
	kinds := arguments[strings.Join(c.path, " ")]
	if len(kinds) == 0 {
		return out
	}
	if names := kinds[min(len(c.args), len(kinds)-1)]; names != nil {
		for _, n := range names(c) {
			if !slices.Contains(c.args, n) {
				out = append(out, candidate{word: n})
			}
		}
	}
	return out
}

// value returns the values of a flag, each after prefix.
func (c *completion) value(prefix, flag string) (out []candidate) {
	names := values[flag]
	if flag == "vm" {
		names = c.vms()
	}
	for _, n := range names {
		out = append(out, candidate{word: prefix + n})
	}
	return out
}

// state returns the state directory.
func (c *completion) state() string {
	dir := c.flags["state-dir"]
	if dir == "" {
		dir = c.e.getenv("STRATA_STATE_DIR")
	}
	if dir == "" {
		dir = c.e.defaultStateDir()
	}
	return dir
}

func (c *completion) vms() []string {
	names, _ := vmNamesIn(c.state()) // see complete
	return names
}

func (c *completion) containers() (ids []string) {
	vm := c.flags["vm"]
	if vm == "" {
		vm = c.e.getenv("STRATA_VM")
	}
	if vm == "" {
		vm = defaultVM
	}
	if !validVM.MatchString(vm) {
		return nil
	}
	status, _ := uvm.ReadStatus(filepath.Join(c.state(), "vms", vm)) // see complete
	for _, claim := range status.Claims {
		ids = append(ids, claim.ID)
	}
	return ids
}

// images returns the names of the images in the store, in the short form that users type.
func (c *completion) images() (names []string) {
	dir := filepath.Join(c.state(), "store")
	if !exists(dir) {
		return nil
	}
	st, err := store.Open(c.ctx, dir, store.Options{})
	if err != nil {
		return nil
	}
	images, _ := st.Images() // see complete
	for _, i := range images {
		name := i.Name
		for _, prefix := range []string{"docker.io/", "library/"} {
			if c.current == "" || !strings.HasPrefix(i.Name, c.current) {
				name = strings.TrimPrefix(name, prefix)
			}
		}
		names = append(names, name)
	}
	return names
}
