package winetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// patience bounds what must not take for ever. No test expects to wait for it.
const patience = time.Minute

// host is this Windows with the stand-in behind its libraries.
func host(t *testing.T, o hcstest.Options) (hcs.Host, *standin.Client) {
	t.Helper()
	c := standin.Find()
	if c == nil {
		t.Skip("the libraries of this Windows are the real ones: run TestWine on Linux")
	}
	if err := c.Reset(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := c.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	})
	api, err := hcs.Native()
	if err != nil {
		t.Fatal(err)
	}
	return hcs.Host{API: api, Build: hcs.Build(), Grant: func(context.Context, string, string) error { return nil }}, c
}

func within(t *testing.T) context.Context {
	// Not of the test: cleanups run when that has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return ctx
}

// options are those of a VM whose boot files are in a folder of this system.
func options(t *testing.T) hcs.OptionsLCOW {
	t.Helper()
	boot := t.TempDir()
	for _, name := range []string{"kernel", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(boot, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := hcs.DefaultLCOW("vm-1", "winetest", boot, hcs.Build())
	o.UseGuestConnection, o.ExternalGuestConnection = true, false
	o.ForwardStdout, o.ForwardStderr = false, false
	return o
}

func running(t *testing.T, h hcs.Host) *hcs.Machine {
	t.Helper()
	m, err := hcs.CreateLCOW(within(t), h, options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Terminate(within(t)), m.Close()); err != nil && !errors.Is(err, vmm.ErrGone) {
			t.Error(err)
		}
	})
	if err := m.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	return m
}

// strange has letters outside of ASCII, one outside of the basic plane, and a percent sign.
const strange = `C:\слой 😀\100%d\layer.vhd`

func TestWindowsVersion(t *testing.T) {
	if standin.Find() == nil {
		t.Skip("a real Windows has its own build")
	}
	if v := windows.RtlGetVersion(); v.MajorVersion != 10 || v.BuildNumber != 19041 {
		t.Errorf("version %d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
	}
}

// What strata does with files must work here too; see what c/wine8.c mends.
func TestFiles(t *testing.T) {
	dir, err := os.MkdirTemp(t.TempDir(), "слой ")
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, strings.Repeat("a", 100), strings.Repeat("b", 100), strings.Repeat("c", 100))
	file := filepath.Join(deep, "f")
	for _, err := range []error{os.MkdirAll(deep, 0o700), os.WriteFile(file, []byte("1"), 0o600),
		os.WriteFile(file+".new", []byte("2"), 0o600), os.Rename(file+".new", file)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "2" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after RemoveAll: %v", err)
	}
	if out, err := exec.CommandContext(within(t), "cmd", "/c", "echo hello").CombinedOutput(); err != nil ||
		!bytes.Contains(out, []byte("hello")) {
		t.Errorf("child process: %q, %v", out, err)
	}
}

// Create and start complete with notifications from a thread that Go has not made, or at once.
func TestMachineLife(t *testing.T) {
	for _, synchronous := range []bool{false, true} {
		t.Run(fmt.Sprintf("synchronous=%v", synchronous), func(t *testing.T) { machineLife(t, synchronous) })
	}
}

func machineLife(t *testing.T, synchronous bool) {
	h, c := host(t, hcstest.Options{Synchronous: synchronous})
	m := running(t, h)
	scsi := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 3, Path: strange, ReadOnly: true}}
	if err := m.Apply(within(t), scsi); err != nil {
		t.Fatal(err)
	}
	remove := scsi
	remove.Op = vmm.Remove
	if err := m.Apply(within(t), remove); err != nil {
		t.Error(err)
	}
	if err := m.Terminate(within(t)); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Done():
	case <-within(t).Done():
		t.Error("the end of the VM was not noticed")
	}
	trace, err := c.Trace()
	if err != nil {
		t.Fatal(err)
	}
	notified, paths := 0, []string(nil)
	for _, call := range trace {
		if call.Fn == "HcsModifyComputeSystem" {
			paths = append(paths, fmt.Sprint(call.Args["configuration"]))
		}
		if call.Fn == "(notification)" {
			notified++
		}
	}
	if len(paths) == 0 || !strings.Contains(paths[0], strange) {
		t.Errorf("the service was told %q", paths)
	}
	if synchronous == (notified > 1) {
		t.Errorf("synchronous %v, %d notifications", synchronous, notified)
	}
}

func TestFailuresCarryEverything(t *testing.T) {
	h, c := host(t, hcstest.Options{})
	m := running(t, h)
	err := c.Step("fail", hcstest.Injection{Function: "HcsModifyComputeSystem", Call: 1, HResult: "0xc037010d",
		ResultDocument: []byte(
			`{"Error":-1070137075,"ErrorMessage":"не то","ErrorEvents":[{"Message":"at C:\\layers\\100%d","Provider":"p","EventId":7}]}`)})
	if err != nil {
		t.Fatal(err)
	}
	err = m.Apply(within(t), vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Path: `C:\a.vhd`}})
	for _, want := range []string{"0xc037010d", "не то", `C:\layers\100%d`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if !errors.Is(err, hcs.ErrInvalidDocument) {
		t.Errorf("error %v", err)
	}
}

func TestCreateFailsLate(t *testing.T) {
	h, c := host(t, hcstest.Options{})
	if err := c.Step("create", hcstest.Injection{Function: "(create-completed)", Call: 1,
		HResult: "0x80070005"}); err != nil {
		t.Fatal(err)
	}
	if _, err := hcs.CreateLCOW(within(t), h, options(t)); !errors.Is(err, vmm.ErrAccessDenied) {
		t.Errorf("error %v", err)
	}
}

// A start that never completes ends with the caller's patience, not with the driver's.
func TestStartNeverCompletes(t *testing.T) {
	h, c := host(t, hcstest.Options{})
	m, err := hcs.CreateLCOW(within(t), h, options(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Step("start", hcstest.Injection{Function: "HcsStartComputeSystem", Call: 1,
		HResult: "0xc0370103"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if err := errors.Join(m.Terminate(within(t)), m.Close()); err != nil && !errors.Is(err, vmm.ErrGone) {
		t.Error(err)
	}
}

func TestDeathIsNoticed(t *testing.T) {
	h, c := host(t, hcstest.Options{})
	m := running(t, h)
	if err := c.Kill(m.ID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-within(t).Done():
		t.Fatal("the death of the VM was not noticed")
	}
	if !errors.Is(m.Err(), vmm.ErrGone) {
		t.Errorf("reason %v", m.Err())
	}
}

// The streams of a process are pipes of this system; the stand-in's process copies its input.
func TestProcess(t *testing.T) {
	h, _ := host(t, hcstest.Options{})
	m := running(t, h)
	input := bytes.Repeat([]byte("0123456789abcdef"), 20000) // more than any pipe holds
	var out, errOut bytes.Buffer
	p, err := m.Exec(within(t), vmm.ProcessSpec{Args: []string{"copy", "100%d", "слой"},
		Stdin: io.NopCloser(bytes.NewReader(input)), Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	code, err := p.Wait(within(t))
	if code != copyCode || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if !bytes.Equal(out.Bytes(), input) {
		t.Errorf("%d bytes came back of %d", out.Len(), len(input))
	}
	if want := "copy 100%d слой"; errOut.String() != want {
		t.Errorf("errors %q, want %q", &errOut, want)
	}
}
