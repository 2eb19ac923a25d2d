package bootimage

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestContainerRuntime: which program the guest gets to run containers by, and what is said when there is none.
func TestContainerRuntime(t *testing.T) {
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if runtime.GOOS != "linux" || err != nil {
		t.Skip("needs a Linux host with /bin/sh")
	}
	defer func(dirs []string) { systemDirs = dirs }(systemDirs)
	for _, tt := range []struct {
		name        string
		path, sbin  []string // what is installed in PATH, and beside it
		given, want string
		warned      bool
	}{
		{name: "crun", path: []string{"runc", "crun"}, want: "crun"},
		{name: "crun beside PATH", path: []string{"runc"}, sbin: []string{"crun"}, want: "crun"},
		{name: "runc", path: []string{"runc"}, want: "runc"},
		{name: "given", path: []string{"crun"}, sbin: []string{"runc-1.2"}, given: "sbin/runc-1.2", want: "runc"},
		{name: "nothing", path: []string{"sh"}, warned: true},
		{name: "left out", path: []string{"crun"}, given: none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := host(t, "none")
			dir := t.TempDir()
			for folder, names := range map[string][]string{"bin": tt.path, "sbin": tt.sbin} {
				for _, name := range names {
					at := filepath.Join(dir, folder, name)
					if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(sh, at)); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Setenv("PATH", filepath.Join(dir, "bin"))
			systemDirs = []string{filepath.Join(dir, "sbin")}
			if o.Runtime = tt.given; tt.given != "" && tt.given != none {
				o.Runtime = filepath.Join(dir, tt.given)
			}
			var log bytes.Buffer
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			img, err := Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			files := unpack(t, img.Initrd)
			got := ""
			for _, name := range []string{"crun", "runc"} {
				if _, ok := files["sbin/"+name]; ok {
					got += name
				}
			}
			if got != tt.want {
				t.Errorf("the guest has %q, want %q", got, tt.want)
			}
			if got != "" && !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(name string) bool {
				return strings.HasPrefix(filepath.Base(name), "libc.")
			}) {
				t.Error("it comes without its libraries")
			}
			if warned := strings.Contains(log.String(), "apt-get install crun"); warned != tt.warned {
				t.Errorf("warned: %t, want %t: %s", warned, tt.warned, &log)
			}
		})
	}
}
