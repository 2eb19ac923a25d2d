package hcs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// on creates a script of one verdict for one function.
func on(fn string, v hcstest.Verdict, reached chan<- struct{}) func(string, int, map[string]any) hcstest.Verdict {
	told := false
	return func(f string, _ int, _ map[string]any) hcstest.Verdict {
		if f != fn {
			return hcstest.Verdict{}
		}
		if reached != nil && !told {
			told = true
			close(reached)
		}
		return v
	}
}

// A create that hangs is given up with its context; when it comes through all the same, what it made
// is ended and closed.
func TestLateCreateIsTidiedUp(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	hold, reached := make(chan struct{}), make(chan struct{})
	r.s.Script(on("HcsCreateComputeSystem", hcstest.Verdict{Before: hold}, reached))
	ctx, cancel := within(t)
	go func() { <-reached; cancel() }()
	if _, err := hcs.CreateLCOW(ctx, r.host, r.lcow(false)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(hold)
	r.eventually("HcsCloseComputeSystem")
	r.s.Wait()
	if left := r.s.Systems(); len(left) != 0 || r.calls("HcsTerminateComputeSystem") != 1 {
		t.Errorf("left: %v", left)
	}
}

// A pending create or start whose notification never comes ends with the context, and for create the
// system is terminated.
func TestCompletionThatNeverComes(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	silent := &deaf{Service: r.s, without: hcs.SystemCreateCompleted, dropped: make(chan struct{})}
	host := r.host
	host.API = silent
	ctx, cancel := within(t)
	go func() { <-silent.dropped; cancel() }()
	if _, err := hcs.CreateLCOW(ctx, host, r.lcow(false)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// The context may have ended before the call itself came back: then what it made is ended in the background.
	r.eventually("HcsCloseComputeSystem")
	r.s.Wait()
	if left := r.s.Systems(); len(left) != 0 || r.calls("HcsTerminateComputeSystem") != 1 {
		t.Errorf("left: %v", left)
	}

	silent = &deaf{Service: r.s, without: hcs.SystemStartCompleted, dropped: make(chan struct{})}
	host.API = silent
	m, err := hcs.CreateLCOW(t.Context(), host, r.lcow(false))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = within(t)
	go func() { <-silent.dropped; cancel() }()
	if err := m.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left := r.s.Systems(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// deaf is a service one of whose notifications gets lost.
type deaf struct {
	*hcstest.Service
	without hcs.NotificationType
	dropped chan struct{}
}

func (d *deaf) RegisterComputeSystemCallback(h hcs.Handle, notify func(hcs.Notification)) (hcs.Handle, hcs.HRESULT) {
	return d.Service.RegisterComputeSystemCallback(h, func(n hcs.Notification) {
		if n.Type == d.without {
			close(d.dropped)
			return
		}
		notify(n)
	})
}

// The exit of the VM, and the end of the service, end a wait for something else.
func TestExitEndsWait(t *testing.T) {
	for name, end := range map[string]func(*hcstest.Service){
		"exit":       func(s *hcstest.Service) { s.Kill("vm") },
		"disconnect": func(s *hcstest.Service) { s.Disconnect() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{})
			silent := &deaf{Service: r.s, without: hcs.SystemStartCompleted, dropped: make(chan struct{})}
			host := r.host
			host.API = silent
			m, err := hcs.CreateLCOW(t.Context(), host, r.lcow(false))
			if err != nil {
				t.Fatal(err)
			}
			go func() { <-silent.dropped; end(r.s) }()
			if err := m.Start(t.Context()); !errors.Is(err, vmm.ErrGone) {
				t.Error(err)
			}
			<-m.Done()
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A guest that boots and never connects does not hold Start for ever, and the VM is ended.
func TestGuestNeverConnects(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	host := r.host
	host.API = r.s
	deafHost := hcstest.NewSockets() // the guest dials elsewhere
	host.Listen = deafHost.Listen
	m, err := hcs.CreateLCOW(t.Context(), host, r.lcow(true))
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{})
	r.s.Script(on("HcsStartComputeSystem", hcstest.Verdict{}, reached))
	ctx, cancel := within(t)
	go func() { <-reached; cancel() }()
	if err := m.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	r.s.Wait()
	if left := r.s.Systems(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if n := deafHost.Listening(); n != 0 {
		t.Errorf("%d listeners are left", n)
	}
}

func TestShutdownAndClose(t *testing.T) {
	for name, external := range both {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{})
			m := r.start(r.lcow(external))
			if err := m.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := r.calls("HcsTerminateComputeSystem"); n != 0 {
				t.Error("a guest that powers off is terminated")
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Errorf("the second Close: %v", err)
			}
			if left := r.s.Systems(); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A guest that refuses to power off is terminated.
func TestShutdownTerminates(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	m := r.start(r.lcow(false))
	r.s.Step("shutdown", hcstest.Injection{Function: "HcsShutdownComputeSystem", Call: 1, HResult: "0xc037010b"})
	if err := m.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if m.Err() == nil {
		t.Error("the VM still runs")
	}
}

// A persistent VM outlives who made it and is reopened by another.
func TestPersistentMachine(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	o := r.lcow(false)
	o.Persistent = true
	m, err := hcs.CreateLCOW(t.Context(), r.host, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, m, disk(0))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), disk(1)); !errors.Is(err, hcs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	again, err := hcs.OpenLCOW(t.Context(), r.host, o)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, again, disk(0).Inverse())
	if left := r.s.Leftovers(); len(left) != 0 {
		t.Error(left)
	}
	if err := errors.Join(again.Terminate(t.Context()), again.Close()); err != nil {
		t.Error(err)
	}
	if _, err := hcs.OpenLCOW(t.Context(), r.host, o); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("a VM that is gone: %v", err)
	}
	o.Persistent = false
	if _, err := hcs.OpenLCOW(t.Context(), r.host, o); !errors.Is(err, hcs.ErrOptions) {
		t.Errorf("a VM that is not persistent: %v", err)
	}
}

// A Linux guest gets its seed, and what its agent says comes into our log, bounded and on one line.
func TestServicesOfTheGuest(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, hcstest.Options{})
	r.host.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	seeded := make(chan int, 1)
	listen := r.host.Listen
	r.host.Connect = nil
	r.host.Listen = listen
	m, err := hcs.CreateLCOW(t.Context(), r.host, r.lcow(false))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	seed, err := r.sockets.Dial(m.RuntimeID(), hcs.ServiceID(hcs.EntropyPort))
	if err != nil {
		t.Fatal(err)
	}
	go func() { n, _ := io.Copy(io.Discard, seed); seeded <- int(n) }()
	if n := <-seeded; n != 512 {
		t.Errorf("%d bytes of seed", n)
	}
	out, err := r.sockets.Dial(m.RuntimeID(), hcs.ServiceID(hcs.LogPort))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`{"level":"warning","msg":"two\nlines \u001b[31m"}`, strings.Repeat("x", 1<<20),
		`{"level":"error","msg":"last"}`} {
		if _, err := io.WriteString(out, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	out.Close()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	text := log.String()
	if !strings.Contains(text, "level=WARN msg=guest vm=vm text=\"two lines") || !strings.Contains(text, "text=last") {
		t.Errorf("%.2000s", text)
	}
	if len(text) > 64<<10 {
		t.Errorf("%d bytes of log", len(text))
	}
}

func TestExec(t *testing.T) {
	r := newRig(t, hcstest.Options{Exec: func(p hcstest.ProcessParameters, in io.Reader, out, errs io.Writer) uint32 {
		io.Copy(out, in)
		io.WriteString(errs, strings.Join(p.CommandArgs, " ")+" "+p.Environment["A"]+" "+p.WorkingDirectory)
		return 7
	}})
	m := r.start(r.lcow(false))
	var out, errs bytes.Buffer
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"cat", "-"}, Env: []string{"A=b=c", "junk"}, Dir: "/d",
		Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(t.Context())
	if err != nil || code != 7 || out.String() != "hello" || errs.String() != "cat - b=c /d" {
		t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Errorf("a signal to what has exited: %v", err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(t.Context()); !errors.Is(err, hcs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := m.Exec(t.Context(), vmm.ProcessSpec{}); err == nil {
		t.Error("no program is accepted")
	}
}

func TestExecSignalAndCancel(t *testing.T) {
	forever := make(chan struct{})
	defer close(forever)
	r := newRig(t, hcstest.Options{Exec: func(hcstest.ProcessParameters, io.Reader, io.Writer, io.Writer) uint32 {
		<-forever
		return 0
	}})
	m := r.start(r.lcow(false))
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(t.Context()); err != nil || code != 137 {
		t.Errorf("code %d, %v", code, err)
	}

	hold, reached := make(chan struct{}), make(chan struct{})
	r.s.Script(on("HcsCreateProcess", hcstest.Verdict{After: hold}, reached))
	ctx, cancel = within(t)
	go func() { <-reached; cancel() }()
	if _, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{"late"}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(hold)
	r.eventually("HcsCloseProcess")
}
