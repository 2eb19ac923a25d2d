package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// Exec implements vmm.Machine. With an internal connection a Linux container is a compute system of its own, which ends
// when its last process is closed. Programs in Windows containers are not supported, nor programs in a Windows guest
// with an external connection.
func (m *Machine) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	if len(spec.Args) == 0 {
		return nil, errors.New("start a process: no arguments: give the program")
	}
	return m.conn.exec(ctx, m, spec)
}

// FindProcess implements vmm.Machine. It requires an external connection.
func (m *Machine) FindProcess(ctx context.Context, containerID string, pid uint32) (vmm.Process, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return m.conn.findProcess(ctx, m, containerID, pid)
}

func processParameters(spec vmm.ProcessSpec, os vmm.OS) hcsschema.ProcessParameters {
	p := hcsschema.ProcessParameters{
		WorkingDirectory: spec.Dir, User: spec.User, EmulateConsole: spec.Terminal, CreateInUtilityVm: true,
		CreateStdInPipe: spec.Stdin != nil, CreateStdOutPipe: spec.Stdout != nil,
		CreateStdErrPipe: spec.Stderr != nil && !spec.Terminal, // a terminal has only one output stream
	}
	if os == vmm.Windows {
		p.CommandLine = windowsCommandLine(spec.Args)
	} else {
		p.CommandArgs = spec.Args
	}
	for _, kv := range spec.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			if p.Environment == nil {
				p.Environment = map[string]string{}
			}
			p.Environment[k] = v
		}
	}
	if spec.Terminal {
		p.ConsoleSize = []int32{int32(spec.Height), int32(spec.Width)}
	}
	return p
}

// windowsCommandLine joins arguments such that a Windows program splits them in the same way: quotes are escaped, and
// the backslashes before a quote are doubled.
func windowsCommandLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quoteArg(a)
	}
	return strings.Join(quoted, " ")
}

func quoteArg(a string) string {
	if a != "" && !strings.ContainsAny(a, " \t\n\v\"") {
		return a
	}
	var b strings.Builder
	b.WriteByte('"')
	slashes := 0
	for i := range len(a) {
		switch c := a[i]; c {
		case '\\':
			slashes++
		case '"':
			b.WriteString(strings.Repeat(`\`, slashes+1)) // double those before the quote, and escape it
			slashes = 0
		default:
			slashes = 0
		}
		b.WriteByte(a[i])
	}
	b.WriteString(strings.Repeat(`\`, slashes))
	b.WriteByte('"')
	return b.String()
}

// process is a process in a VM that the service runs.
type process struct {
	m        *Machine
	name     string
	info     ProcessInfo
	callback Handle
	// container is the compute system of the process if that is not the VM.
	container *system
	exited    chan struct{}
	once      sync.Once
	output    sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

const opProcess = "create process"

// programError adds the meaning of a code when a process is created.
func programError(err error) error {
	switch {
	case hasCode(err, 0x2, 0x3): // of CreateProcess in a Windows guest, and of our agent
		return fmt.Errorf("%w: %w", vmm.ErrProgramNotFound, err)
	case hasCode(err, 0x5, 0xC1, 0xD8): // access denied, bad format, wrong machine type
		return fmt.Errorf("%w: %w", vmm.ErrNotExecutable, err)
	}
	return err
}

// startProcess starts a process in a compute system: the VM, or a container in it.
func (m *Machine) startProcess(ctx context.Context, s *system, spec vmm.ProcessSpec,
	parameters string) (*process, error) {
	p := &process{m: m, name: spec.Args[0], exited: make(chan struct{})}
	giveUp := func() {
		m.sys.api.TerminateProcess(p.info.Process)
		p.release()
	}
	registered := OK
	o, err := detached(ctx, func() outcome {
		info, result, hr := m.sys.api.CreateProcess(s.handle, parameters)
		p.info = info
		if !hr.Failed() {
			p.callback, registered = m.sys.api.RegisterProcessCallback(info.Process, func(n Notification) {
				if n.Type == ProcessExited || n.Type == ServiceDisconnect {
					p.once.Do(func() { close(p.exited) })
				}
			})
		}
		return outcome{result: result, hr: hr}
	}, func(o outcome) {
		if !o.hr.Failed() {
			giveUp()
		}
	})
	if err == nil {
		err = programError(o.err(opProcess, m.ID()))
	}
	if err == nil && registered.Failed() {
		overrun(ctx, giveUp)
		err = newError("register for notifications of process", m.ID(), registered, "")
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.pump(spec)
	return p, nil
}

// pump copies the streams: input until its reader ends or fails, output until the process has closed it.
func (p *process) pump(spec vmm.ProcessSpec) {
	if p.info.Stdin != nil {
		go func() {
			io.Copy(p.info.Stdin, spec.Stdin) // that a process does not read its input is not an error
			p.info.Stdin.Close()
		}()
	}
	for _, s := range []struct {
		from io.ReadCloser
		to   io.Writer
	}{{p.info.Stdout, spec.Stdout}, {p.info.Stderr, spec.Stderr}} {
		if s.from == nil {
			continue
		}
		p.output.Go(func() {
			defer s.from.Close()
			if _, err := io.Copy(s.to, s.from); err != nil {
				p.m.host.Logger.Debug("output of a process", "vm", p.m.ID(), "process", p.name, "error", err)
			}
		})
	}
}

// Pid implements vmm.Process.
func (p *process) Pid() uint32 { return p.info.ID }

// Wait implements vmm.Process.
func (p *process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.exited:
	case <-p.m.Done():
		return -1, fmt.Errorf("wait for %s: %w", p.name, p.m.Err())
	case <-ctx.Done():
		return -1, fmt.Errorf("wait for %s: %w", p.name, context.Cause(ctx))
	}
	drained := make(chan struct{})
	go func() {
		p.output.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		return -1, fmt.Errorf("wait for the output of %s: %w", p.name, context.Cause(ctx))
	}
	text, err := p.call(ctx, "query properties of process", func() outcome {
		value, result, hr := p.m.sys.api.GetProcessProperties(p.info.Process)
		return outcome{value: value, result: result, hr: hr}
	})
	if err != nil {
		return -1, err
	}
	var status hcsschema.ProcessStatus
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return -1, fmt.Errorf("wait for %s: the answer is no status document: %w", p.name, err)
	}
	if !status.Exited {
		return -1, fmt.Errorf("wait for %s: the service says that it runs after telling of its exit", p.name)
	}
	return int(int32(status.ExitCode)), nil
}

func (p *process) call(ctx context.Context, op string, f func() outcome) (string, error) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return "", fmt.Errorf("%s %s: %w", op, p.name, ErrClosed)
	}
	o, err := detached(ctx, f, func(outcome) {})
	if err == nil {
		err = o.err(op, p.m.ID())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.name, err)
	}
	return o.value, nil
}

// windowsSignals maps Linux signals to console events.
var windowsSignals = map[int]string{2: "CtrlC", 3: "CtrlBreak", 15: "CtrlShutdown", 1: "CtrlClose"}

// Signal implements vmm.Process. In a Windows guest signals are sent as console events. SIGKILL terminates the process
// in any guest.
func (p *process) Signal(ctx context.Context, sig int) error {
	const kill = 9
	var options any = hcsschema.SignalLinux{Signal: sig}
	if p.m.enc.os == vmm.Windows {
		name, ok := windowsSignals[sig]
		if !ok && sig != kill {
			return fmt.Errorf("signal %d to %s: %w by a Windows guest", sig, p.name, ErrNotSupported)
		}
		options = hcsschema.SignalWindows{Signal: name}
	}
	document, err := json.Marshal(options)
	if err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	_, err = p.call(ctx, "signal process", func() outcome {
		if sig == kill {
			result, hr := p.m.sys.api.TerminateProcess(p.info.Process)
			return outcome{result: result, hr: hr}
		}
		result, hr := p.m.sys.api.SignalProcess(p.info.Process, string(document))
		return outcome{result: result, hr: hr}
	})
	// If the process has exited, that is success; if the VM is gone, it is an error.
	if IsPending(err) || !errors.Is(err, vmm.ErrGone) && (IsAlreadyStopped(err) || errors.Is(err, ErrElementNotFound)) {
		return nil
	}
	return err
}

// Resize implements vmm.Process.
func (p *process) Resize(ctx context.Context, width, height uint16) error {
	document, err := json.Marshal(hcsschema.ProcessModifyRequest{Operation: hcsschema.ModifyConsoleSize,
		ConsoleSize: &hcsschema.ConsoleSize{Width: width, Height: height}})
	if err != nil {
		return fmt.Errorf("resize the terminal of %s: %w", p.name, err)
	}
	_, err = p.call(ctx, "modify process", func() outcome {
		result, hr := p.m.sys.api.ModifyProcess(p.info.Process, string(document))
		return outcome{result: result, hr: hr}
	})
	return err
}

// Close implements vmm.Process. After it returns, nothing is written to the writers of the ProcessSpec. If one blocks
// for longer than 30 seconds, that is an error.
func (p *process) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), tidyGrace)
	defer cancel()
	return closeDetached(ctx, "close "+p.name, p.release)
}

func (p *process) release() error {
	var errs []error
	for _, c := range []io.Closer{p.info.Stdin, p.info.Stdout, p.info.Stderr} {
		if c != nil {
			errs = append(errs, ignoreClosed(c.Close()))
		}
	}
	if p.callback != 0 {
		if hr := p.m.sys.api.UnregisterProcessCallback(p.callback); hr.Failed() {
			errs = append(errs, newError("unregister from notifications of process", p.m.ID(), hr, ""))
		}
	}
	if hr := p.m.sys.api.CloseProcess(p.info.Process); hr.Failed() {
		errs = append(errs, newError("close process", p.m.ID(), hr, ""))
	}
	if p.container != nil {
		errs = append(errs, p.container.release())
	}
	p.output.Wait()
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
