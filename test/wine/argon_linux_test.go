package winetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// newArgon is strata.exe with what process-isolated containers of this Windows host itself are made of.
func newArgon(t *testing.T) *program {
	p := newProgram(t, standin.ServerOptions{})
	p.files(map[string]string{"app/Files/a": "", "base/Files/b": "", "scratch/sandbox.vhdx": "s", "file": "f",
		"bare/readme": "", "folder/sandbox.vhdx/a": "", "base/UtilityVM/c": "", "images/app.cim": "c", "merged.bcim": "m"})
	return p
}

// containers are the two ways to mount a root on the host, and the calls of the platform that change something
// in a mount and in an unmount.
var containers = map[string]struct {
	mount          []string
	layers         string // as the command counts them
	adding, ending []string
}{
	"folders": {[]string{"mount", "--vm", "host", "--scratch", "scratch", "web", "app", "base"}, "2 layers",
		[]string{"ActivateLayer", "PrepareLayer"}, []string{"UnprepareLayer", "DeactivateLayer"}},
	"CIM": {[]string{"mount", "--vm", "host", "--scratch", "scratch", "--cim", `images\app.cim`, "web"}, "1 layer",
		[]string{"CimMountImage", "ActivateLayer", "HcsAttachOverlayFilter"},
		[]string{"HcsDetachOverlayFilter", "DeactivateLayer", "CimDismountImage"}},
}

var (
	unmountHost = command{args: []string{"unmount", "--vm", "host", "web"}, want: []string{"web: unmounted"}}
	recoverAll  = command{args: []string{"recover"}, want: []string{"host: in order"}}
	stopHost    = command{args: []string{"vm", "stop", "host"}}
)

// changing returns those of the calls so far that change something on the host.
func (p *program) changing() (fns []string) {
	for _, c := range p.server.Service().Trace() {
		if changes(c.Fn) {
			fns = append(fns, c.Fn)
		}
	}
	return fns
}

func changes(fn string) bool { return fn != "GetLayerMountPath" && fn != "NameToGuid" }

// TestWineArgon mounts, lists and unmounts the roots of process-isolated containers by commands that know of each
// other only through the state directory.
func TestWineArgon(t *testing.T) {
	p := newArgon(t)
	for name, tt := range containers {
		t.Run(name, func(t *testing.T) {
			before := len(p.changing())
			dry := append([]string{"--dry-run"}, tt.mount...)
			p.run(command{args: dry, want: []string{"add", p.path("scratch")}})
			if got := p.changing()[before:]; len(got) > 0 {
				t.Errorf("a dry run called %q", got)
			}
			mounted := command{args: tt.mount, want: []string{"web: " + tt.layers + ` at \\?\Volume{`}}
			p.run(mounted,
				command{args: []string{"ls"}, want: []string{"web", "host", "mounted", `\\?\Volume{`}},
				command{args: tt.mount, code: 1, want: []string{"strata unmount --vm host web"}},
				command{args: []string{"exec", "--vm", "host", "web", "a"}, code: 125, want: []string{"unsupported operation"}},
				recoverAll,
				command{args: []string{"--dry-run", "unmount", "--vm", "host", "web"}, want: []string{"remove", p.path("scratch")}},
				unmountHost,
				command{args: unmountHost.args, code: 1, want: []string{"strata ls"}},
				mounted, unmountHost)
			want := slices.Concat(tt.adding, tt.ending, tt.adding, tt.ending)
			if got := p.changing()[before:]; !slices.Equal(got, want) {
				t.Errorf("called %q\nwant   %q", got, want)
			}
		})
	}
	p.run(stopHost)
	p.clean()
}

// TestWineArgonBadInput: what cannot be mounted is said before the platform is called, by the name it was given.
func TestWineArgonBadInput(t *testing.T) {
	p := newArgon(t)
	for _, tt := range []struct {
		args string // after mount --vm host
		code int
		want []string
	}{
		{`--scratch scratch web .\nosuch`, 1, []string{p.path("nosuch"), "not found"}},
		{`--scratch scratch web nosuch\deeper`, 1, []string{`nosuch\deeper`}},
		{`--scratch scratch web ` + p.path("nosuch"), 1, []string{p.path("nosuch")}},
		{`--scratch scratch web app .\nosuch`, 1, []string{p.path("nosuch")}},
		{`--scratch scratch web app file`, 1, []string{p.path("file")}},
		{`--scratch scratch web app app`, 1, []string{"duplicate layer", "app"}},
		{`--scratch .\nosuch web app base`, 1, []string{p.path("nosuch")}},
		{`--scratch file web app base`, 1, []string{p.path("file")}},
		{`--scratch bare web app base`, 1, []string{p.path("bare"), "sandbox.vhdx"}},
		{`--scratch folder web app base`, 1, []string{p.path("folder"), "sandbox.vhdx"}},
		{`web app base`, 1, []string{"scratch"}},
		{`--scratch scratch ..\web app base`, 1, []string{`..\\web`}},
		{`--scratch scratch web`, 2, []string{"at least one layer"}},
		{`--scratch scratch --cim images\app.cim web app`, 2, []string{"--cim"}},
		{`--scratch scratch --cim images\nosuch.cim web`, 1, []string{p.path("images", "nosuch.cim")}},
		{`--scratch scratch --cim images web`, 1, []string{p.path("images")}},
		{`--scratch scratch --cim nosuch.bcim\app.cim --cim-kind file web`, 1, []string{p.path("nosuch.bcim")}},
		{`--scratch scratch --cim images\app.cim --cim-kind tape web`, 1, []string{"tape"}},
		{`--scratch bare --cim images\app.cim web`, 1, []string{p.path("bare")}},
	} {
		p.run(command{args: append([]string{"mount", "--vm", "host"}, strings.Fields(tt.args)...), code: tt.code,
			want: tt.want})
		if calls := p.server.Service().Trace(); len(calls) > 0 {
			t.Fatalf("mount %s: called %q", tt.args, calls[0].Fn)
		}
	}
	p.run(command{args: []string{"ls"}}, recoverAll, stopHost)
	p.clean()
}

// TestWineArgonKilled kills strata.exe within each call of a mount and of an unmount that changes something, before
// and after its effect. The next command takes back a mount and finishes an unmount.
func TestWineArgonKilled(t *testing.T) {
	p := newArgon(t)
	for name, tt := range containers {
		mount := command{args: tt.mount, want: []string{"web: "}}
		for _, after := range []bool{false, true} {
			for _, fn := range tt.adding {
				t.Run(fmt.Sprintf("%s, mount, %s, after=%t", name, fn, after), func(t *testing.T) {
					p.kill(t, tt.mount, fn, after)
					p.run(command{args: recoverAll.args, want: []string{"host: in order, 0 containers"}})
					if left := p.server.Leftovers(); len(left) > 0 {
						t.Errorf("left behind: %q", left)
					}
				})
			}
			for _, fn := range tt.ending {
				t.Run(fmt.Sprintf("%s, unmount, %s, after=%t", name, fn, after), func(t *testing.T) {
					p.run(mount)
					p.kill(t, unmountHost.args, fn, after)
					p.run(command{args: recoverAll.args, want: []string{"host: in order, 0 containers"}})
					if left := p.server.Leftovers(); len(left) > 0 {
						t.Errorf("left behind: %q", left)
					}
				})
			}
		}
		p.run(mount, unmountHost)
	}
	p.run(stopHost)
	p.clean()
}

// kill starts a command and kills it as soon as it is within the first call of fn.
func (p *program) kill(t *testing.T, args []string, fn string, after bool) {
	t.Helper()
	reached, hang := make(chan struct{}), make(chan struct{})
	once := false
	p.server.Service().Script(func(called string, _ int, _ map[string]any) (v hcstest.Verdict) {
		if called != fn || once {
			return v
		}
		once = true
		close(reached)
		if after {
			v.After = hang
		} else {
			v.Before = hang
		}
		return v
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := p.command(ctx, command{args: args})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-reached:
		_ = cmd.Process.Kill()
		<-ended
	case err := <-ended:
		t.Errorf("strata.exe %s ended without a call of %s: %v", strings.Join(args, " "), fn, err)
	}
	close(hang)
	p.settle(t)
	p.server.Service().Script(nil)
}

// settle waits until the service has answered all calls, those of killed programs too.
func (p *program) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(limit); p.server.Calling() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a call does not end")
		}
	}
}
