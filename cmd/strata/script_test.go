package main

import (
	"archive/tar"
	"os"
	"path/filepath"
	"runtime"
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

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup, Cmds: commands, RequireExplicitExec: true,
		RequireUniqueNames: true})
}
