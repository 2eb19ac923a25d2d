package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/vmm"
)

// TestImageScripts runs the scripts that need images: app.tar and windows.tar are in their folder, a registry
// with the first is at $REGISTRY, the second is $WINDOWS in another one.
func TestImageScripts(t *testing.T) {
	blobs := imagetest.Blobs{}
	d := blobs.Image(t, nil,
		imagetest.Layer{Tar: treetest.Tar(t, treetest.Entry{Name: "one", Body: strings.Repeat("1", 100_000)}),
			Compression: "gzip"},
		imagetest.Layer{Tar: treetest.Tar(t, treetest.Entry{Name: "two", Body: "2"}), Compression: "zstd"},
		imagetest.Layer{Tar: treetest.Tar(t, treetest.Entry{Name: ".wh.one"})})
	app := blobs.LayoutTar(t, imagetest.Tagged(d, "v1"))
	win := imagetest.Blobs{}
	// The base of a Windows image is often not in the registry.
	foreign := imagetest.Layer{Tar: []byte("base"), Compression: "gzip",
		MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
	w := win.Image(t, &imagetest.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}, foreign,
		imagetest.Layer{Tar: []byte("x")})
	windows := win.LayoutTar(t, w)
	reg := imagetest.NewRegistry(t, blobs)
	reg.Tags["v1"] = d
	winReg := imagetest.NewRegistry(t, win)
	winReg.Tags["v1"] = w
	testscript.Run(t, testscript.Params{Dir: "testdata/image", Cmds: commands, RequireExplicitExec: true,
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("REGISTRY", reg.Host())
			env.Setenv("WINDOWS", winReg.Host()+"/org/win:v1")
			env.Setenv("DIGEST", d.Digest)
			env.Setenv("FORMAT", map[bool]string{true: "vhd", false: "erofs"}[runtime.GOOS == "windows"]) // the default
			for name, b := range map[string][]byte{"app.tar": app, "windows.tar": windows} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), b, 0o644); err != nil {
					return err
				}
			}
			return setup(env)
		}})
}

// TestDescribe: what the image says, and what the command line says instead.
func TestDescribe(t *testing.T) {
	full := image.Config{Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"serve"}, Env: []string{"PATH=/opt/bin",
		"A=image"}, WorkingDir: "/srv", User: "app:staff"}
	for _, tt := range []struct {
		name string
		cfg  image.Config
		args []string
		cmd  []string
		want vmm.ProcessSpec
		fail bool
	}{
		{name: "all from the image", cfg: full,
			want: vmm.ProcessSpec{Args: []string{"/entry", "-x", "serve"}, Dir: "/srv", User: "app:staff",
				Env: []string{"PATH=/opt/bin", "A=image"}}},
		{name: "a program of one's own", cfg: full, cmd: []string{"ls"},
			want: vmm.ProcessSpec{Args: []string{"/entry", "-x", "ls"}, Dir: "/srv", User: "app:staff",
				Env: []string{"PATH=/opt/bin", "A=image"}}},
		{name: "another entrypoint drops the image's arguments", cfg: full, args: []string{"--entrypoint", "/bin/sh"},
			want: vmm.ProcessSpec{Args: []string{"/bin/sh"}, Dir: "/srv", User: "app:staff", Env: []string{"PATH=/opt/bin",
				"A=image"}}},
		{name: "no entrypoint", cfg: full, args: []string{"--entrypoint", ""}, cmd: []string{"id"},
			want: vmm.ProcessSpec{Args: []string{"id"}, Dir: "/srv", User: "app:staff", Env: []string{"PATH=/opt/bin",
				"A=image"}}},
		{name: "flags win", cfg: full, args: []string{"--user", "0", "--workdir", "/", "--env", "A=flag", "--env", "B=1"},
			want: vmm.ProcessSpec{Args: []string{"/entry", "-x", "serve"}, Dir: "/", User: "0", Env: []string{"PATH=/opt/bin",
				"A=flag", "B=1"}}},
		{name: "an image that says nothing", cmd: []string{"true"},
			want: vmm.ProcessSpec{Args: []string{"true"}, Dir: "/", Env: []string{defaultPath}}},
		{name: "nothing to run", fail: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &env{stdin: strings.NewReader(""), getenv: func(string) string { return "" }}
			app := &cli.Command{Name: "strata", Commands: runCommands(e), DisableSliceFlagSeparator: true}
			i := slices.IndexFunc(app.Commands, func(c *cli.Command) bool { return c.Name == "run" })
			var got vmm.ProcessSpec
			app.Commands[i].Action = func(_ context.Context, cmd *cli.Command) error {
				in := runInput{command: tt.cmd}
				err := e.documentInput(cmd, &in)
				if err == nil {
					err = e.describe(cmd, &in, tt.cfg)
				}
				got = vmm.ProcessSpec{Args: in.spec.Args, Env: in.spec.Env, Dir: in.spec.Dir, User: in.spec.User}
				return err
			}
			err := app.Run(t.Context(), append([]string{"strata", "run"}, tt.args...))
			if (err != nil) != tt.fail {
				t.Fatalf("error %v", err)
			}
			if d := cmp.Diff(tt.want, got); d != "" && !tt.fail {
				t.Error(d)
			}
		})
	}
}

// TestManyLayers: where nobody watches, an import of many layers is one line unless it takes long.
func TestManyLayers(t *testing.T) {
	for _, tt := range []struct {
		step time.Duration // between two events
		want int           // lines
	}{{time.Millisecond, 1}, {lineEvery / 100, 7}} {
		var out strings.Builder
		b := newBars(&out, false)
		now := b.last
		b.now = func() time.Time { now = now.Add(tt.step); return now }
		for i := range 300 {
			for _, s := range []store.State{store.Reading, store.Reading, store.Done} {
				b.tell(store.Event{Layer: i, Count: 300, DiffID: "sha256:01", State: s, Done: 1024, Size: 1024})
			}
		}
		b.finish()
		b.finish()
		if n := strings.Count(out.String(), "\n"); n != tt.want ||
			!strings.HasSuffix(out.String(), "300 layers converted, 300.0 KiB\n") {
			t.Errorf("an event each %v: %d lines, want %d:\n%s", tt.step, n, tt.want, &out)
		}
	}
}

// TestBars: a bar for each layer on a terminal, plain lines elsewhere.
func TestBars(t *testing.T) {
	ev := func(layer int, s store.State, done int64) store.Event {
		return store.Event{Layer: layer, Count: 2, DiffID: "sha256:0123456789abcdef", State: s, Done: done, Size: 1 << 20}
	}
	for _, terminal := range []bool{true, false} {
		var out strings.Builder
		b := newBars(&out, false)
		b.terminal = terminal
		now := b.last
		b.now = func() time.Time { now = now.Add(lineEvery); return now }
		b.tell(ev(0, store.Reading, 1<<19))
		b.tell(ev(1, store.Reading, 1<<18))
		b.tell(ev(0, store.Done, 1<<20))
		b.tell(ev(1, store.Present, 1<<20))
		b.finish()
		text := out.String()
		wants := []string{"0 of 2 layers done, 512.0 KiB read\n", "0 of 2 layers done, 768.0 KiB read\n",
			"1 layer converted, 1.0 MiB\n"}
		if terminal {
			wants = []string{"layer 1/2 0123456789ab  50% of 1.0 MiB", "layer 2/2 0123456789ab  25% of 1.0 MiB",
				"layer 1/2 0123456789ab done 1.0 MiB\n"}
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("terminal %v: %q lacks %q", terminal, text, want)
			}
		}
		if strings.Contains(text, "\x1b") != terminal || strings.Contains(text, "[####") != terminal {
			t.Errorf("terminal %v: %q", terminal, text)
		}
		out.Reset()
		b.retry(image.Retry{Registry: "r.example", Step: "manifest v1", Err: errors.New("answer 502 Bad Gateway"),
			Pause: 1500 * time.Millisecond, Attempt: 2, Attempts: 6})
		b.finish()
		want := "registry r.example, manifest v1: answer 502 Bad Gateway; attempt 2 of 6 in 1.5s\n"
		if !strings.HasPrefix(out.String(), want) ||
			strings.Contains(out.String(), "\x1b") != terminal {
			t.Errorf("terminal %v: retry %q, want %q", terminal, out.String(), want)
		}
		if b.converted() != 1 {
			t.Errorf("%d converted, want 1", b.converted())
		}
	}
}

// TestInspectShowsTheProgram: what image inspect prints of all that an image can say of its program.
func TestInspectShowsTheProgram(t *testing.T) {
	for _, tt := range []struct {
		what, config, want string
	}{
		{"nothing", `{}`, ""},
		{"stop signal", `{"StopSignal":"SIGQUIT"}`, "Stop signal:\tSIGQUIT\n"},
		{"volumes", `{"Volumes":{"/var/lib/b":{},"/a":{}}}`, "Volumes:\t[\"/a\" \"/var/lib/b\"]\n"},
		{"ports", `{"ExposedPorts":{"80/tcp":{},"443/udp":{}}}`, "Ports:\t[\"443/udp\" \"80/tcp\"]\n"},
		{"shell", `{"Shell":["/bin/bash","-c"]}`, "Shell:\t[\"/bin/bash\" \"-c\"]\n"},
		{"health check",
			`{"Healthcheck":{"Test":["CMD","curl","x"],"Interval":30000000000,"Timeout":1000000000,"Retries":3}}`,
			"Healthcheck:\t[\"CMD\" \"curl\" \"x\"] every 30s, within 1s, 3 retries (shown only: Strata does not run it)\n"},
		{"health check of which the image says no more", `{"Healthcheck":{"Test":["CMD","true"]}}`,
			"Healthcheck:\t[\"CMD\" \"true\"] (shown only: Strata does not run it)\n"},
		{"health check that waits", `{"Healthcheck":{"Test":["CMD-SHELL","x"],"StartPeriod":5000000000,"Retries":1}}`,
			"Healthcheck:\t[\"CMD-SHELL\" \"x\"] start period 5s, 1 retry (shown only: Strata does not run it)\n"},
		{"labels", `{"Labels":{"b":"2","a":"1"}}`, "Label:\t\"a\" = \"1\"\nLabel:\t\"b\" = \"2\"\n"},
		{"what acts on a terminal", `{"Volumes":{"/\u001b[2J":{}},"StopSignal":"\u001b]0;x\u0007"}`,
			"Stop signal:\t\\x1b]0;x\\a\nVolumes:\t[\"/\\x1b[2J\"]\n"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c, err := image.ParseConfig([]byte(`{"os":"linux","architecture":"amd64","config":` + tt.config + `}`))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if writeRun(&out, c); out.String() != tt.want {
				t.Errorf("it prints %q, want %q", out.String(), tt.want)
			}
		})
	}
}

// TestImageMatches: images NAME lists all tags of a name, and images NAME:TAG that one alone.
func TestImageMatches(t *testing.T) {
	for _, tt := range []struct {
		wanted, name string
		want         bool
	}{
		{"app", "docker.io/library/app:v1", true}, {"app", "app", true}, {"library/app", "docker.io/library/app:v1", true},
		{"app:v1", "docker.io/library/app:v1", true}, {"app:latest", "docker.io/library/app:v1", false},
		{"app:latest", "docker.io/library/app:latest", true}, {"app:latest", "app", true}, {"app:v1", "app", false},
		{"localhost:5000/app", "localhost:5000/app:v1", true}, {"localhost:5000/app:v2", "localhost:5000/app:v1", false},
		{"a*", "docker.io/library/app:v1", true}, {"a*:v2", "docker.io/library/app:v1", false}, {"b", "app", false},
	} {
		if got := imageMatches(tt.wanted, tt.name); got != tt.want {
			t.Errorf("images %s lists %s: %t", tt.wanted, tt.name, got)
		}
	}
}
