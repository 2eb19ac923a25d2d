package winetest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// program is strata.exe with a service behind it and a state directory of its own.
type program struct {
	t           *testing.T
	prefix      *Prefix
	server      *standin.Server
	exe, folder string
}

func newProgram(t *testing.T, o standin.ServerOptions) *program {
	p := &program{t: t, prefix: start(t), folder: t.TempDir()}
	server, err := standin.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	p.server, p.exe = server, filepath.Join(p.folder, "strata.exe")
	built, err := strataExe()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(built, p.exe); err != nil {
		t.Fatal(err)
	}
	return p
}

// strataExe links strata.exe, once for all tests, in a folder for temporary files, which leaktest.Main removes.
var strataExe = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "strata-exe-*")
	if err != nil {
		return "", err
	}
	exe := filepath.Join(dir, "strata.exe")
	return exe, goForWindows(context.Background(), "build", "-o", exe, module+"/cmd/strata")
})

// path is a file in the folder of the program, as it sees it.
func (p *program) path(elem ...string) string {
	return Path(filepath.Join(append([]string{p.folder}, elem...)...))
}

// command is a command line of strata.exe and what it has to answer.
type command struct {
	args  []string
	stdin string
	want  []string // in the output
	code  int
	state string // the state directory; empty: "state"
}

func (p *program) run(tests ...command) {
	p.t.Helper()
	for _, tt := range tests {
		p.runOne(tt)
	}
}

// command is a command line that is about to run.
func (p *program) command(ctx context.Context, tt command) *exec.Cmd {
	cmd := p.prefix.Command(ctx, p.exe, tt.args...)
	cmd.Dir, cmd.Stdin = p.folder, strings.NewReader(tt.stdin)
	cmd.Env = append(cmd.Env, p.server.Env(), "STRATA_STATE_DIR="+p.path(cmp.Or(tt.state, "state")),
		"STRATA_BOOT_FILES="+p.path("boot"))
	return cmd
}

func (p *program) runOne(tt command) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), limit)
	defer cancel()
	cmd := p.command(ctx, tt)
	out, err := cmd.CombinedOutput()
	line := "strata.exe " + strings.Join(tt.args, " ")
	switch {
	case slow(cmd) && ctx.Err() == nil && len(tt.want) > 0:
		p.t.Logf("%s: Wine killed it while it ended; its output still tells what it did", line)
	case cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != tt.code:
		p.t.Errorf("%s: %v instead of exit code %d\n%s", line, err, tt.code, out)
	}
	for _, want := range tt.want {
		if !strings.Contains(string(out), want) {
			p.t.Errorf("%s: %q is missing in:\n%s", line, want, out)
		}
	}
}

// slow reports whether Wine's server killed a program: it gives one that has called ExitProcess a second
// to be gone, which is not enough for all of its threads where the host is busy, and the exit code is lost.
func slow(cmd *exec.Cmd) bool {
	if cmd.ProcessState == nil {
		return false
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// clean checks that nothing is left in the service: no VM, no attachment, no handle of a program.
func (p *program) clean() {
	p.t.Helper()
	p.server.Service().Wait()
	if left := p.server.Leftovers(); len(left) > 0 {
		p.t.Errorf("left behind: %q", left)
	}
	for _, system := range p.server.Service().Systems() {
		p.t.Errorf("left behind: system %s", system)
	}
	if vms, err := os.ReadDir(filepath.Join(p.folder, "state", "vms")); err != nil || len(vms) > 0 {
		p.t.Errorf("state of VMs: %v, %v", vms, err)
	}
}

// files creates files in the folder of the program.
func (p *program) files(files map[string]string) {
	p.t.Helper()
	for name, text := range files {
		name = filepath.Join(p.folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestWineStrata runs strata.exe itself.
func TestWineStrata(t *testing.T) {
	p := newProgram(t, standin.ServerOptions{Service: hcstest.Options{Exec: copyProcess}})
	p.files(map[string]string{"boot/kernel": "k", "boot/initrd.img": "i",
		"layers/base/layer.vhd": "b", "layers/app/layer.vhd": "a", "scratch/sandbox.vhdx": "s"})
	p.run(
		command{args: []string{"--help"}, want: []string{"strata", "mount", "unmount"}},
		// Wine has no services of Hyper-V: doctor must say so, and find all the rest.
		command{args: []string{"doctor"}, code: 1, want: []string{"10.0." + Build, "vmcompute.dll", "computestorage.dll",
			"computecore.dll", "cimfs.dll", p.path("boot"),
			"Administrators", "vmms", "Enable-WindowsOptionalFeature"}},
		command{args: []string{"no-such-command"}, code: 2, want: []string{"no-such-command"}},
	)
	mount := []string{"mount", "--scratch", "scratch", "web", `layers\app`, `layers\base`}
	p.run(
		command{args: []string{"mount", "web", `layers\base`}, code: 1, want: []string{"strata vm start"}},
		command{args: []string{"vm", "start"}, want: []string{"default: ready in "}},
		command{args: []string{"vm", "start"}, code: 1, want: []string{"runs already"}},
		command{args: []string{"vm", "ls"}, want: []string{"default", "running", "256 MiB"}},
		command{args: mount, want: []string{"web: 2 layers at /run/gcs/c/web/rootfs"}},
		command{args: []string{"ls"}, want: []string{"web", "mounted", "/run/gcs/c/web/rootfs", "scratch"}},
		command{args: mount, code: 1, want: []string{"in use"}},
		command{args: []string{"vm", "inspect"}, want: []string{"container", "web (mounted", `app\layer.vhd`}},
		command{args: []string{"exec", "--in-vm", "-i", "--", "echo", "a"}, stdin: "words", code: copyCode,
			want: []string{"words", "echo a"}},
		command{args: []string{"recover"}},
		command{args: []string{"unmount", "--keep-layers", "web"}, want: []string{"unmounted in part"}},
		command{args: []string{"unmount", "web"}, want: []string{"web: unmounted"}},
		command{args: []string{"vm", "stop"}, want: []string{"default: stopped"}},
		command{args: []string{"vm", "ls"}},
	)
	p.clean()
}

// TestWineTwoStates: VMs of one name in two state directories have nothing to do with each other, and a start
// that fails leaves nothing by which a later command would take somebody's VM for its own.
func TestWineTwoStates(t *testing.T) {
	p := newProgram(t, standin.ServerOptions{})
	p.files(map[string]string{"boot/kernel": "k", "boot/initrd.img": "i"})
	start, stop := []string{"vm", "start"}, []string{"vm", "stop", "--force"}
	p.run(
		command{args: start, want: []string{"default: ready in "}},
		command{args: start, state: "other", want: []string{"default: ready in "}},
		command{args: stop, state: "other", want: []string{"default: ended"}},
	)
	if left := p.server.Service().Systems(); len(left) != 1 {
		t.Errorf("systems: %q", left)
	}
	// The folder is there already, so that the start does not remove all of it.
	p.files(map[string]string{"other/vms/default/mine": ""})
	p.server.Service().Step("create", hcstest.Injection{Function: "HcsCreateComputeSystem", Call: 1,
		HResult: "0x80070005"})
	p.run(
		command{args: start, state: "other", code: 1, want: []string{"0x80070005"}},
		command{args: []string{"vm", "inspect"}, state: "other", code: 1, want: []string{"there is no utility VM"}},
		command{args: []string{"vm", "ls"}, want: []string{"running"}},
		command{args: stop, want: []string{"default: ended"}},
	)
	p.clean()
}

// TestWineDeafGuest: a VM whose guest does not answer is listed, is not started twice, and can be ended.
func TestWineDeafGuest(t *testing.T) {
	p := newProgram(t, standin.ServerOptions{})
	p.files(map[string]string{"boot/kernel": "k", "boot/initrd.img": "i"})
	p.run(command{args: []string{"vm", "start"}, want: []string{"default: ready in "}})
	p.server.Service().Script(func(_ string, _ int, args map[string]any) (v hcstest.Verdict) {
		if strings.Contains(fmt.Sprint(args), hcsschema.PropertyGuestConnection) {
			v.HR = 0xc037010a // the connection is closed
		}
		return v
	})
	p.run(
		command{args: []string{"recover"}, code: 1, want: []string{"0xc037010a"}},
		command{args: []string{"vm", "ls"}, want: []string{"default", "running"}},
		command{args: []string{"vm", "start"}, code: 1, want: []string{"runs already"}},
		command{args: []string{"vm", "stop", "--force"}, want: []string{"default: ended"}},
	)
	p.clean()
}

// TestWineWindowsGuest: a Windows guest starts from its image, with a scratch of its own, and takes layers.
func TestWineWindowsGuest(t *testing.T) {
	p := newProgram(t, standin.ServerOptions{Service: hcstest.Options{Exec: copyProcess}})
	p.files(map[string]string{"uvm/UtilityVM/SystemTemplate.vhdx": "t", "base/Files/a": "", "app/Files/b": "",
		"scratch/sandbox.vhdx": "s"})
	p.run(
		command{args: []string{"vm", "start", "--guest", "windows"}, code: 2, want: []string{"--uvm-layer"}},
		command{args: []string{"vm", "start", "--guest", "windows", "--uvm-layer", "base"}, code: 1,
			want: []string{"UtilityVM"}},
		command{args: []string{"vm", "start", "--guest", "windows", "--uvm-layer", "app", "--uvm-layer", "uvm"},
			want: []string{"default: ready in "}},
		command{args: []string{"mount", "--scratch", "scratch", "web", "app", "base"}, want: []string{"web: 2 layers at C:"}},
		command{args: []string{"ls"}, want: []string{"web", "mounted"}},
		command{args: []string{"vm", "ls"}, want: []string{"running", "1024 MiB"}},
		command{args: []string{"exec", "--in-vm", "-i", "--", "echo", "a"}, stdin: "words", code: copyCode,
			want: []string{"words"}},
		command{args: []string{"exec", "web", "echo", "a"}, code: 125,
			want: []string{"programs in Windows containers", "not supported"}},
		command{args: []string{"unmount", "web"}, want: []string{"web: unmounted"}},
	)
	if b, err := os.ReadFile(filepath.Join(p.folder, "state", "vms", "default", "scratch",
		"sandbox.vhdx")); string(b) != "t" {
		t.Errorf("the VM's scratch: %q, %v", b, err)
	}
	p.run(
		command{args: []string{"vm", "stop"}, want: []string{"default: stopped"}},
		command{args: []string{"run", "--isolation=process", "base", "--", "a"}, code: 125, want: []string{"on Linux only"}},
	)
	p.clean()
}

// TestWineOldGuest: that a guest knows no request to eject a disk is found out once, not by every command.
func TestWineOldGuest(t *testing.T) {
	p := newProgram(t, standin.ServerOptions{Service: hcstest.Options{OldGuest: true}})
	p.files(map[string]string{"boot/kernel": "k", "boot/initrd.img": "i", "base/layer.vhd": "b",
		"scratch/sandbox.vhdx": "s"})
	mount := command{args: []string{"mount", "--scratch", "scratch", "web", "base"}, want: []string{"web: 1 layer at"}}
	unmount := command{args: []string{"unmount", "web"}, want: []string{"web: unmounted"}}
	p.run(command{args: []string{"vm", "start"}, want: []string{"default: ready in "}}, mount, unmount, mount, unmount,
		command{args: []string{"vm", "stop"}, want: []string{"default: stopped"}})
	asked := 0
	for _, call := range p.server.Service().Trace() {
		if strings.Contains(fmt.Sprint(call.Args), string(hcsschema.ResourceSCSIDevice)) {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	p.clean()
}
