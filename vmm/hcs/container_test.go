package hcs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// inContainer is a process that tells what it was started with: whether by the container's document or by
// parameters of its own, the root, and the arguments.
func inContainer(p hcstest.ProcessParameters, in io.Reader, out, _ io.Writer) uint32 {
	var hosted struct{ OciSpecification specs.Spec }
	if json.Unmarshal(p.Hosted, &hosted) != nil {
		return 1
	}
	process, by := hosted.OciSpecification.Process, "document"
	if p.OciProcess != nil {
		by = "parameters"
		if json.Unmarshal(p.OciProcess, &process) != nil {
			return 2
		}
	}
	fmt.Fprintln(out, by, hosted.OciSpecification.Root.Path, process.Args, p.CreateInUtilityVm)
	io.Copy(io.Discard, in)
	return 7
}

// A container is there as long as somebody has a process in it.
func TestExecInContainer(t *testing.T) {
	r := newRig(t, hcstest.Options{Exec: inContainer})
	m := r.start(r.lcow(false))
	const system = "vm+web Running"
	start := func(arg string, out io.Writer) (end func()) {
		stdin, input := io.Pipe()
		p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{arg}, ContainerID: "web", Root: "/root", Stdin: stdin,
			Stdout: out})
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			input.Close()
			if code, err := p.Wait(t.Context()); err != nil || code != 7 {
				t.Errorf("%s: code %d, %v", arg, code, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	var one, two bytes.Buffer
	endOne := start("one", &one)
	endTwo := start("two", &two)
	endOne()
	if want := "document /root [one] false\n"; one.String() != want {
		t.Errorf("the first process: %q", one.String())
	}
	if !slices.Contains(r.s.Systems(), system) {
		t.Errorf("the container ended with its first process: %q", r.s.Systems())
	}
	endTwo()
	if want := "parameters /root [two] false\n"; two.String() != want {
		t.Errorf("the second process: %q", two.String())
	}
	if slices.Contains(r.s.Systems(), system) {
		t.Errorf("the container outlived its last process: %q", r.s.Systems())
	}
}

// Whatever fails, the container does not stay.
func TestExecInContainerFails(t *testing.T) {
	for _, fn := range []string{"HcsCreateComputeSystem", "(create-completed)", "HcsRegisterComputeSystemCallback",
		"HcsStartComputeSystem", "HcsCreateProcess", "HcsRegisterProcessCallback"} {
		t.Run(fn, func(t *testing.T) {
			r := newRig(t, hcstest.Options{Exec: inContainer})
			m := r.start(r.lcow(false))
			r.s.Script(func(f string, _ int, _ map[string]any) (v hcstest.Verdict) {
				if f == fn {
					v.HR = 0x80070005
				}
				return v
			})
			_, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"x"}, ContainerID: "web", Root: "/r"})
			if !errors.Is(err, vmm.ErrAccessDenied) {
				t.Errorf("error %v", err)
			}
			r.s.Wait()
			if got := r.s.Systems(); !slices.Equal(got, []string{"vm Running"}) {
				t.Errorf("systems %q", got)
			}
		})
	}
}

func TestExecInContainerRefuses(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	m := r.start(r.lcow(false))
	for _, spec := range []vmm.ProcessSpec{
		{Args: []string{"x"}, ContainerID: "web"},
		{Args: []string{"x"}, Root: "/r"},
		{Args: []string{"x"}, ContainerID: "a/b", Root: "/r"},
	} {
		if _, err := m.Exec(t.Context(), spec); err == nil {
			t.Errorf("%+v is accepted", spec)
		}
	}
	// One that another process has made and not started yet is waited for.
	s := r.s
	handle, _, _ := s.CreateComputeSystem("vm+web", `{"HostingSystemId":"vm","HostedSystem":{}}`)
	defer s.CloseComputeSystem(handle)
	ctx, cancel := context.WithCancel(t.Context())
	r.s.Script(func(f string, _ int, _ map[string]any) (v hcstest.Verdict) {
		if f == "HcsGetComputeSystemProperties" {
			cancel()
		}
		return v
	})
	if _, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{"x"}, ContainerID: "web", Root: "/r"}); !errors.Is(err,
		context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestExecSaysWhatIsWrong tells a program that is not there from one that cannot be executed.
func TestExecSaysWhatIsWrong(t *testing.T) {
	for code, want := range map[hcs.HRESULT]error{
		0x80070002: vmm.ErrProgramNotFound, 0x80070003: vmm.ErrProgramNotFound,
		0x80070005: vmm.ErrNotExecutable, 0x800700C1: vmm.ErrNotExecutable, 0x800700D8: vmm.ErrNotExecutable,
		0x80004005: nil, 0xC0370110: nil,
	} {
		r := newRig(t, hcstest.Options{Exec: inContainer})
		m := r.start(r.lcow(false))
		r.s.Script(func(f string, _ int, _ map[string]any) (v hcstest.Verdict) {
			if f == "HcsCreateProcess" {
				v.HR = code
			}
			return v
		})
		for _, spec := range []vmm.ProcessSpec{{Args: []string{"x"}, ContainerID: "web", Root: "/r"}, {Args: []string{"x"}}} {
			_, err := m.Exec(t.Context(), spec)
			if err == nil {
				t.Errorf("%#x: started", uint32(code))
			}
			for _, sentinel := range []error{vmm.ErrProgramNotFound, vmm.ErrNotExecutable} {
				if errors.Is(err, sentinel) != (sentinel == want) {
					t.Errorf("%#x: %v, want %v", uint32(code), err, want)
				}
			}
		}
		r.s.Wait()
	}
}
