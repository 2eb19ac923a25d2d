package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

// guestProcess is a program in a guest that heeds no signal but those in ends. A silent guest answers nothing.
type guestProcess struct {
	vmm.Process
	starting func() // called while it is started
	ends     []syscall.Signal
	silent   bool
	refuse   error // of each signal

	mu   sync.Mutex
	got  []syscall.Signal
	over chan struct{}
}

func (p *guestProcess) Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error) {
	if p.starting != nil {
		p.starting()
	}
	return p, nil
}
func (p *guestProcess) Close() error { return nil }
func (p *guestProcess) FindProcess(context.Context, string, uint32) (vmm.Process, error) {
	return p, nil
}

func (p *guestProcess) Signal(ctx context.Context, sig int) error {
	p.mu.Lock()
	p.got = append(p.got, syscall.Signal(sig))
	p.mu.Unlock()
	if p.silent {
		<-ctx.Done()
		return ctx.Err()
	}
	if slices.Contains(p.ends, syscall.Signal(sig)) {
		close(p.over)
	}
	return p.refuse
}

func (p *guestProcess) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.over:
		return 42, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (p *guestProcess) signals() []syscall.Signal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// TestInterruptedProgram: a command ends after one signal, whatever the program and its guest do.
func TestInterruptedProgram(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    *guestProcess
		stop syscall.Signal
		want []syscall.Signal // that the program gets
		code int
		err  error
	}{
		{"that ends", &guestProcess{ends: []syscall.Signal{syscall.SIGTERM}}, syscall.SIGTERM,
			[]syscall.Signal{syscall.SIGTERM}, 42, nil},
		{"that must be killed", &guestProcess{ends: []syscall.Signal{syscall.SIGKILL}},
			syscall.SIGTERM, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}, 42, nil},
		{"that cannot be killed", &guestProcess{}, syscall.SIGTERM, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}, 0,
			errStubborn},
		{"in a silent guest", &guestProcess{silent: true}, syscall.SIGTERM, []syscall.Signal{syscall.SIGTERM}, 0, errSilent},
		{"in a guest that breaks the protocol", &guestProcess{refuse: vmm.ErrProtocol}, syscall.SIGTERM,
			[]syscall.Signal{syscall.SIGTERM}, 0, errLeft},
		{"with a stop signal of its own", &guestProcess{ends: []syscall.Signal{syscall.SIGINT}}, syscall.SIGINT,
			[]syscall.Signal{syscall.SIGINT}, 42, nil},
		{"that does not hear its stop signal", &guestProcess{ends: []syscall.Signal{syscall.SIGKILL}}, 37,
			[]syscall.Signal{37, syscall.SIGKILL}, 42, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.over = make(chan struct{})
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(&interruption{syscall.SIGTERM})
			e := &env{stderr: io.Discard, grace: 20 * time.Millisecond, interrupts: &interrupts{}}
			code, err := e.process(ctx, tt.p, vmm.ProcessSpec{Args: []string{"x"}}, tt.stop)
			if code != tt.code || !errors.Is(err, tt.err) || !errors.Is(err, tt.p.refuse) && tt.p.refuse != nil {
				t.Errorf("exit code %d, %v; want %d, %v", code, err, tt.code, tt.err)
			}
			if got := tt.p.signals(); !slices.Equal(got, tt.want) {
				t.Errorf("the program got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestQuit: SIGQUIT goes to the program, where one runs, and is no interruption. Without one, and the second
// time, it is one.
func TestQuit(t *testing.T) {
	i := &interrupts{}
	ctx, cancel := context.WithCancelCause(t.Context())
	i.cancel = cancel
	p := &guestProcess{ends: []syscall.Signal{syscall.SIGQUIT}, over: make(chan struct{})}
	e := &env{stderr: io.Discard, grace: time.Minute, interrupts: i}
	done := make(chan error)
	go func() {
		_, err := e.process(ctx, p, vmm.ProcessSpec{Args: []string{"x"}}, syscall.SIGTERM)
		done <- err
	}()
	for {
		i.mu.Lock()
		ready := i.quit != nil
		i.mu.Unlock()
		if ready {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if i.got(ctx, syscall.SIGQUIT) || ctx.Err() != nil {
		t.Errorf("it is taken for an interruption: %v", context.Cause(ctx))
	}
	if err := <-done; err != nil || !slices.Equal(p.signals(), []syscall.Signal{syscall.SIGQUIT}) {
		t.Errorf("the program got %v, %v", p.signals(), err)
	}
	if i.got(ctx, syscall.SIGQUIT) || ctx.Err() == nil {
		t.Error("nothing is interrupted when no program runs")
	}
}

// TestQuitAtTheStart: a program runs, and may have written something, before its start is over. SIGQUIT in between
// goes to it all the same.
func TestQuitAtTheStart(t *testing.T) {
	i := &interrupts{}
	ctx, cancel := context.WithCancelCause(t.Context())
	i.cancel = cancel
	p := &guestProcess{ends: []syscall.Signal{syscall.SIGQUIT}, over: make(chan struct{})}
	p.starting = func() { i.got(ctx, syscall.SIGQUIT) }
	e := &env{stderr: io.Discard, grace: time.Second, interrupts: i}
	_, err := e.process(ctx, p, vmm.ProcessSpec{Args: []string{"x"}}, syscall.SIGTERM)
	if got := p.signals(); err != nil || !slices.Equal(got, []syscall.Signal{syscall.SIGQUIT}) {
		t.Errorf("the program got %v, %v", got, err)
	}
}

// TestSignals: which signal interrupts, and which ends the process at once.
func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		first, second syscall.Signal
		interrupts    bool // the first
		exits         bool // the second
	}{
		{syscall.SIGINT, syscall.SIGINT, true, true},
		{syscall.SIGTERM, syscall.SIGINT, true, true},
		{syscall.SIGHUP, syscall.SIGHUP, true, false}, // a terminal that goes away sends more than one
		{syscall.SIGHUP, syscall.SIGTERM, true, true},
		{syscall.SIGQUIT, syscall.SIGQUIT, true, true},
		{syscall.SIGPIPE, syscall.SIGTERM, false, false},
	} {
		i := &interrupts{}
		ctx, cancel := context.WithCancelCause(t.Context())
		i.cancel = cancel
		if i.got(ctx, tt.first) || (ctx.Err() != nil) != tt.interrupts {
			t.Errorf("%v first: %v", tt.first, context.Cause(ctx))
		}
		if got := i.got(ctx, tt.second); got != tt.exits {
			t.Errorf("%v after %v ends the process: %v", tt.second, tt.first, got)
		}
	}
}

// TestErrorsOnStderr: one line for a person, a document for a program, and the exit code of the signal.
func TestErrorsOnStderr(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		cause error // of the end of the context
		code  int
		want  failure
	}{
		{[]string{"bogus"}, nil, 2, failure{`there is no command "bogus" (see strata --help)`, 2}},
		{[]string{"vm", "inspect", "../x"}, nil, 2, failure{`VM name "../x": use 1 to 64 letters, digits, '_', '.' or '-', ` +
			`a letter or digit first (see strata vm inspect --help)`, 2}},
		{[]string{"vm", "inspect", "x"}, nil, 1, failure{"", 1}},
		{[]string{"vm", "inspect", "x"}, &interruption{syscall.SIGHUP}, 129, failure{"", 129}},
		{[]string{"vm", "inspect", "x"}, &interruption{syscall.SIGTERM}, 143, failure{"", 143}},
		{[]string{"vm", "inspect", "x"}, context.Canceled, 130, failure{"", 130}},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if tt.cause != nil {
			cancel(tt.cause)
		}
		var errs bytes.Buffer
		e := &env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &errs, getenv: os.Getenv, lookupEnv: os.LookupEnv}
		code := e.run(ctx, append([]string{"strata", "--json", "--state-dir", t.TempDir()}, tt.args...))
		cancel(nil)
		var got failure
		if err := json.Unmarshal(errs.Bytes(), &got); err != nil {
			t.Fatalf("%q: %v: %s", tt.args, err, errs.String())
		}
		if tt.want.Error == "" {
			tt.want.Error = got.Error // whatever it says
		}
		if code != tt.code || got != tt.want || got.Error == "" {
			t.Errorf("strata %q: exit code %d, %+v; want %d, %+v", tt.args, code, got, tt.code, tt.want)
		}
	}
}

// TestBusy: one sentence that names the container's programs and --force.
func TestBusy(t *testing.T) {
	for _, tt := range []struct{ guest, want string }{
		{"/run/x is in use: process 12 (sh) by root directory /, process 14 (sleep) by program /bin/sleep, process 12 " +
			"(sh) by open file",
			`container "web" is in use by process 12 (sh), 14 (sleep); to end what runs in it: strata unmount --vm big --force web`},
		{"/run/x is in use: process 5 (sleep) in the container by root directory /, process 77 (cat) by open file /x",
			`container "web" is in use by its process 5 (sleep) and process 77 (cat); ` +
				`to end what runs in it: strata unmount --vm big --force web`},
		{"nobody that can be named", `container "web" is in use: in use: nobody that can be named`},
	} {
		err := (&env{}).advise(fmt.Errorf("%w: %s", vmm.ErrBusy, tt.guest), "big", "web")
		if err.Error() != tt.want || !errors.Is(err, vmm.ErrBusy) {
			t.Errorf("%q, want %q", err, tt.want)
		}
	}
}

// TestStartCodeOfErrors: what is known of a program that was not started is in the exit code.
func TestStartCodeOfErrors(t *testing.T) {
	for err, want := range map[error]int{vmm.ErrProgramNotFound: 127, vmm.ErrNotExecutable: 126, vmm.ErrGone: 125} {
		if got := startCode(fmt.Errorf("run x: %w", err)); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}
