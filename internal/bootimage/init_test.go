package bootimage

import (
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/guest/guestmain"
)

func TestMarkerIsThatOfPrograms(t *testing.T) {
	if got := string(agentMarker()); got != guestmain.Marker {
		t.Errorf("looked for is %q, programs have %q", got, guestmain.Marker)
	}
}

// TestFindInit finds the guest's /init, and refuses before anything boots what cannot be one.
func TestFindInit(t *testing.T) {
	other := elf.EM_AARCH64
	if hostMachine() == other {
		other = elf.EM_X86_64
	}
	bare := string(programFor(hostMachine()))
	agent := bare + strings.Repeat("x", 1<<20-len(bare)-5) + string(agentMarker()) // across two windows of the search
	script := "#!/bin/sh\n# " + string(agentMarker()) + "\n"
	foreign := string(programFor(other)) + string(agentMarker())
	for name, tt := range map[string]struct {
		files map[string]string // by path; a file below "path" is found in PATH
		given string
		env   string
		want  string   // empty: refused
		says  []string // in the error
	}{
		"given": {files: map[string]string{"x": agent, "dir/strata-init": agent}, given: "x",
			env: "y", want: "x"},
		"given, without the agent": {files: map[string]string{"x": bare, "dir/strata-init": agent}, given: "x",
			says: []string{"x does not carry it"}},
		"given, a script": {files: map[string]string{"x": script}, given: "x",
			says: []string{"x is no program for Linux"}},
		"given, of another processor": {files: map[string]string{"x": foreign}, given: "x",
			says: []string{"another processor"}},
		"given, cut short": {files: map[string]string{"x": bare[:20]}, given: "x",
			says: []string{"no program for Linux"}},
		"given, empty": {files: map[string]string{"x": ""}, given: "x",
			says: []string{"no program for Linux"}},
		"given, a folder": {files: map[string]string{"x/y": agent}, given: "x",
			says: []string{"no regular file"}},
		"given, missing": {given: "x", says: []string{"x: "}},
		"environment": {files: map[string]string{"y": agent, "dir/strata-init": agent}, env: "y",
			want: "y"},
		"environment, without the agent": {files: map[string]string{"y": bare, "dir/strata-init": agent}, env: "y",
			says: []string{"STRATA_INIT", "does not carry"}},
		"beside the program": {files: map[string]string{"dir/strata-init": agent, "path/strata-init": agent,
			"dir/self": agent},
			want: "dir/strata-init"},
		"beside the program is another's": {files: map[string]string{"dir/strata-init": foreign, "path/strata-init": agent},
			want: "path/strata-init"},
		"PATH": {files: map[string]string{"path/strata-init": agent, "dir/self": agent},
			want: "path/strata-init"},
		"the program itself": {files: map[string]string{"dir/self": agent, "path/strata": agent},
			want: "dir/self"},
		"strata in PATH": {files: map[string]string{"dir/self": bare, "path/strata": agent},
			want: "path/strata"},
		"nowhere": {files: map[string]string{"dir/self": bare},
			says: []string{"self does not carry it", "go install"}},
		"all are wrong": {files: map[string]string{"dir/strata-init": script, "dir/self": bare, "path/strata": foreign},
			says: []string{"strata-init is no program", "self does not carry", "another processor"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range tt.files {
				write(t, filepath.Join(root, path), []byte(content))
			}
			in := func(path string) string {
				if path == "" {
					return ""
				}
				return filepath.Join(root, path)
			}
			l := initSearch{given: in(tt.given), env: in(tt.env), dir: in("dir"), self: in("dir/self"),
				lookPath: func(name string) (string, error) {
					_, err := os.Stat(in("path/" + name))
					return in("path/" + name), err
				}}
			got, err := l.find()
			if got != in(tt.want) || (err == nil) != (tt.want != "") {
				t.Fatalf("found %q, %v; want %q", got, err, tt.want)
			}
			if err == nil {
				return
			}
			if !errors.Is(err, ErrNoInit) {
				t.Errorf("error %v", err)
			}
			for _, s := range append(tt.says, "remedy: ", "strata-init") {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in: %v", s, err)
				}
			}
		})
	}
}

// TestBuildRefusesInit: what cannot be /init is refused before anything is built.
func TestBuildRefusesInit(t *testing.T) {
	o := host(t, "none")
	o.InitPath = filepath.Join(t.TempDir(), "bare")
	write(t, o.InitPath, programFor(hostMachine()))
	if _, err := Build(t.Context(), o); !errors.Is(err, ErrNoInit) {
		t.Errorf("built: %v", err)
	}
	if _, err := os.Stat(o.CacheDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was built: %v", err)
	}
}
