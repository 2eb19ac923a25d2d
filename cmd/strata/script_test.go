package main

import (
	"archive/tar"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stratavm/strata/test/leaktest"
)

func TestMain(m *testing.M) {
	if code, ok := guestMain(); ok { // the first process of a container on this system
		os.Exit(code)
	}
	// The race detector lets each of the many commands that the tests run sleep for a second before it ends.
	if os.Getenv("GORACE") == "" {
		if err := os.Setenv("GORACE", "atexit_sleep_ms=20"); err != nil {
			panic(err)
		}
	}
	testscript.Main(leaktest.Guarded{Tests: m}, map[string]func(){"strata": main})
}

// setup gives every script a state directory of its own, and a name with everything in it that has
// ever broken a command line, an option string or a terminal.
func setup(env *testscript.Env) error {
	env.Setenv("STRATA_STATE_DIR", filepath.Join(env.WorkDir, "state"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("GORACE", os.Getenv("GORACE"))
	for _, dir := range filepath.SplitList(env.Getenv("PATH")) { // for scripts that change PATH
		if path := filepath.Join(dir, "strata"); fileExists(path) {
			env.Setenv("STRATA", path)
			break
		}
	}
	odd := "a, b=c,readonly=off 'x' \"y\"\nz;$(id) %s\\ ü"
	env.Setenv("ODD", odd)
	if runtime.GOOS == "windows" { // no file has such a name there
		odd = strings.NewReplacer(`"`, "", "\n", "", `\`, "").Replace(odd)
	}
	env.Setenv("ODDFILE", odd)
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// commands are what scripts can do besides running strata.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"mktar": mktar,
	"spans": spans,
	"shorten": func(ts *testscript.TestScript, _ bool, args []string) { // shorten GLOB: files to a page
		files, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		for _, f := range files {
			ts.Check(os.Truncate(f, 4096))
		}
	},
}

// mktar writes a tar: mktar FILE NAME=CONTENT... A name that ends in / is a folder, NAME->TARGET a
// symbolic link, NAME@FILE an executable copy of a file of this host.
func mktar(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mktar FILE NAME=CONTENT...")
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	w := tar.NewWriter(f)
	for _, arg := range args[1:] {
		h := &tar.Header{Name: arg, Typeflag: tar.TypeDir, Mode: 0o755}
		content := ""
		if name, target, ok := strings.Cut(arg, "->"); ok {
			h = &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}
		} else if name, c, ok := strings.Cut(arg, "="); ok {
			content = c
			h = &tar.Header{Name: name, Size: int64(len(c)), Typeflag: tar.TypeReg, Mode: 0o644}
		} else if name, file, ok := strings.Cut(arg, "@"); ok {
			content = ts.ReadFile(file)
			h = &tar.Header{Name: name, Size: int64(len(content)), Typeflag: tar.TypeReg, Mode: 0o755}
		}
		ts.Check(w.WriteHeader(h))
		_, err := w.Write([]byte(content))
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(f.Close())
}

// spans reads a trace: spans FILE NAME..., where A/B is a span B in the time of a span A. Of each at least one must be
// there, and no span may have a name that is given with a "-" before it. Those of a lane must nest.
func spans(ts *testscript.TestScript, neg bool, args []string) {
	type event struct {
		Name   string  `json:"name"`
		Phase  string  `json:"ph"`
		Micros float64 `json:"ts"`
		Took   float64 `json:"dur"`
		Thread int     `json:"tid"`
	}
	var doc struct {
		Events []event `json:"traceEvents"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	in := func(a, b event) bool { return a.Micros <= b.Micros && b.Micros+b.Took <= a.Micros+a.Took }
	for i, a := range doc.Events {
		for _, b := range doc.Events[i+1:] {
			if a.Phase == "X" && b.Phase == "X" && a.Thread == b.Thread && !in(a, b) && !in(b, a) &&
				a.Micros < b.Micros+b.Took && b.Micros < a.Micros+a.Took {
				ts.Fatalf("%s: %s and %s overlap", args[0], a.Name, b.Name)
			}
		}
	}
	there := func(want string) bool {
		outer, inner, nested := strings.Cut(want, "/")
		return slices.ContainsFunc(doc.Events, func(a event) bool {
			return a.Name == outer && (!nested || slices.ContainsFunc(doc.Events, func(b event) bool {
				return b.Name == inner && in(a, b)
			}))
		})
	}
	for _, want := range args[1:] {
		name, absent := strings.CutPrefix(want, "-")
		if there(name) == absent {
			ts.Fatalf("%s: span %s is there: %t", args[0], name, !absent)
		}
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup, Cmds: commands, RequireExplicitExec: true,
		RequireUniqueNames: true})
}
