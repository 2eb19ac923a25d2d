package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/term"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// grace is how long a program may take to end after it was told to.
const grace = 10 * time.Second

// defaultPath is the PATH of programs without one.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func execCommands(e *env) []*cli.Command {
	one := 1
	return []*cli.Command{{
		Name: "exec", Usage: "run a program in a container's root", ArgsUsage: "ID [--] PROGRAM [ARG...]",
		Description: "The exit code is that of the program, 128+n when signal n ended it; 127 when there is no such\n" +
			"program, 126 when it cannot be executed, 125 when it was not started for another reason. Signals are as for\n" +
			"strata run, but the program is asked to end by TERM: the stop signal of an image is for its own program, not\n" +
			"for one beside it.\n\n" +
			examples("strata exec web cat /etc/os-release", "strata exec -it web sh",
				"strata exec --env LANG=C --workdir /srv --user www-data web -- id",
				"strata exec --in-vm -- cat /proc/mounts   # in the VM itself"),
		Flags: append([]cli.Flag{vmFlag(),
			&cli.BoolFlag{Name: "in-vm", Usage: "in the VM itself, not in a container"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"},
				Usage: "do not wait for the program, which ends with the container of strata run; what it writes goes nowhere"},
		}, processFlags()...),
		StopOnNthArg: &one,
		Action:       e.exec,
	}}
}

// processFlags returns the flags of commands that run programs.
func processFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "connect standard input"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`KEY=VALUE`, or KEY to pass on its value (repeat)"},
		&cli.StringSliceFlag{Name: "env-file", TakesFile: true,
			Usage: "`FILE` with such lines, before those of --env (repeat)"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "`DIR` in the root"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "name, uid, uid:gid or name:group"},
	}
}

func (e *env) exec(ctx context.Context, cmd *cli.Command) error {
	args := cmd.Args().Slice()
	id := ""
	if !cmd.Bool("in-vm") {
		if len(args) == 0 {
			return usage(cmd, "give the id of a container, or --in-vm")
		}
		if id, args = args[0], args[1:]; id == "" {
			return usage(cmd, "the id of the container is empty; for the VM itself: --in-vm")
		}
	}
	if args = e.program(args); len(args) == 0 {
		return usage(cmd, "give a program to run")
	}
	spec, err := e.spec(cmd, args)
	if err != nil {
		return err
	}
	return notRun(e.execIn(ctx, cmd, id, spec))
}

// execIn runs a program in a container of a VM. It only reads the ledger and takes no lock, so that it does not exclude
// other commands.
func (e *env) execIn(ctx context.Context, cmd *cli.Command, id string, spec vmm.ProcessSpec) error {
	name := cmd.String("vm")
	if cs, r, ok := e.containerOfExec(ctx, cmd, id); ok {
		return e.execBeside(ctx, cmd, cs, r, spec)
	}
	if cmd.Bool("detach") {
		return usage(cmd, "--detach is for containers of strata run (strata ps); in another one, or in a VM: "+
			"strata exec ID sh -c 'PROGRAM &' leaves a program in the background")
	}
	v, _, err := e.view(ctx, cmd, name)
	if err != nil {
		return err
	}
	if id != "" {
		c, err := layers.Lookup(v.Dir, id)
		if err == nil {
			spec, err = c.Process(spec)
		}
		if err == nil && c.Image != nil {
			spec.Env = spec.Env[1:] // without the default PATH: the image has one
			spec, err = strata.ImageProcess(c.Image, spec)
		}
		if err != nil {
			return e.advise(err, name, id)
		}
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "run %q in %s", spec.Args, cmp.Or(spec.Root, "the VM"))
	}
	return e.runIn(ctx, cmd, name, spec, syscall.SIGTERM, nil)
}

// runIn runs a program in the VM called name. stop is the signal that asks it to end. through, if not nil, wraps the
// runner.
func (e *env) runIn(ctx context.Context, cmd *cli.Command, name string, spec vmm.ProcessSpec,
	stop syscall.Signal, through func(strata.Runner) strata.Runner) error {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return err
	}
	r, err := strata.OpenRunner(ctx, dir, e.openOptions(cmd))
	if err != nil {
		return &exitError{exitNotRun, e.explain(name, err)}
	}
	defer func() {
		if err := r.Close(); err != nil {
			e.say("strata: closing the connection to the VM: %v", err)
		}
	}()
	m := r
	if through != nil {
		m = through(r)
	}
	return e.explainEnd(ctx, dir, name, e.runProgram(ctx, m, spec, stop))
}

// explainEnd replaces the error of a program that failed because its VM has ended.
func (e *env) explainEnd(ctx context.Context, dir, name string, err error) error {
	ee, ok := errors.AsType[*exitError](err)
	if !ok || ee.err == nil {
		return err
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.grace/2)
	defer cancel()
	for {
		info, ierr := strata.InspectVM(limited, dir)
		if ierr == nil && !info.Running || errors.Is(ierr, strata.ErrNoVM) {
			return &exitError{ee.code, fmt.Errorf("VM %q has ended while the program ran: %w", name, ee.err)}
		}
		if ierr != nil || !errors.Is(ee.err, vmm.ErrGuestUnreachable) {
			return err
		}
		select { // when a VM ends, the connection breaks before its process has exited
		case <-limited.Done():
			return err
		case <-time.After(endPoll):
		}
	}
}

// endPoll is the poll interval for the end of a VM.
const endPoll = 20 * time.Millisecond

// runProgram runs a program and turns its exit code into ours.
func (e *env) runProgram(ctx context.Context, m strata.Runner, spec vmm.ProcessSpec, stop syscall.Signal) error {
	ctx, s := span.Start(ctx, "strata.program", attribute.String("strata.program", spec.Args[0]))
	code, err := e.process(ctx, m, spec, stop)
	span.End(s, err)
	if err != nil {
		return &exitError{startCode(err), fmt.Errorf("run %s: %w", printable(spec.Args[0]), err)}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// startCode returns the exit code for a program that could not be started: 125, 126 or 127.
func startCode(err error) int {
	switch {
	case errors.Is(err, vmm.ErrProgramNotFound):
		return exitNoProgram
	case errors.Is(err, vmm.ErrNotExecutable):
		return exitNotExecutable
	}
	return exitNotRun
}

// spec reads the process flags.
func (e *env) spec(cmd *cli.Command, args []string) (vmm.ProcessSpec, error) {
	env, err := e.environment(cmd)
	if err != nil {
		return vmm.ProcessSpec{}, err
	}
	s := vmm.ProcessSpec{
		Args: args, Env: append([]string{defaultPath}, env...),
		Dir: cmd.String("workdir"), User: cmd.String("user"),
		Stdout: e.stdout, Stderr: e.stderr,
	}
	if s.Dir != "" && !hostpath.IsAbs(s.Dir) {
		return s, usage(cmd, "--workdir %q: give an absolute path", s.Dir)
	}
	if cmd.Bool("interactive") {
		s.Stdin = e.stdin
	}
	if !cmd.Bool("tty") {
		return s, nil
	}
	fd, ok := terminal(e.stdin)
	if !ok && !cmd.Bool("detach") {
		return s, usage(cmd, "--tty: standard input is no terminal")
	}
	s.Terminal, s.Stderr = true, nil
	if s.Width, s.Height = 80, 24; ok {
		s.Width, s.Height = terminalSize(fd)
	}
	if t := e.getenv("TERM"); t != "" {
		s.Env = append(s.Env, "TERM="+t)
	}
	return s, nil
}

// environment reads --env-file and --env: KEY=VALUE, or KEY to pass on its value, which is left out if it is not set.
func (e *env) environment(cmd *cli.Command) (env []string, err error) {
	for _, path := range cmd.StringSlice("env-file") {
		more, err := e.envFile(path)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	for _, kv := range cmd.StringSlice("env") {
		if kv == "" || kv[0] == '=' {
			return nil, usage(cmd, "--env %q: give KEY=VALUE, or KEY to pass on its value", kv)
		}
		env = e.appendVariable(env, kv)
	}
	return env, nil
}

// appendVariable appends KEY=VALUE, or KEY with its value in this process's environment if it is set.
func (e *env) appendVariable(env []string, kv string) []string {
	if !strings.Contains(kv, "=") {
		value, set := e.lookupEnv(kv)
		if !set {
			return env
		}
		kv += "=" + value
	}
	return append(env, kv)
}

func terminalSize(fd int) (width, height uint16) {
	w, h, err := term.GetSize(fd)
	if err != nil || w <= 0 || h <= 0 || w > 0xffff || h > 0xffff {
		return 80, 24
	}
	return uint16(w), uint16(h)
}

// process runs one program to its end. When ctx ends, it sends the signal stop, and SIGKILL after the grace; it does
// not wait for a guest that does not respond.
func (e *env) process(
	ctx context.Context, m strata.Runner, spec vmm.ProcessSpec, stop syscall.Signal,
) (code int, err error) {
	if _, local := terminal(e.stdin); spec.Terminal && local {
		restore, err := e.rawTerminal()
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	if spec.Stdin != nil {
		// Over a pipe, because a read of standard input cannot be interrupted and would block our exit.
		r, w := io.Pipe()
		in := spec.Stdin
		go func() {
			_, err := io.Copy(w, in)
			w.CloseWithError(err) // never fails
		}()
		defer r.Close()
		spec.Stdin = r
	}
	// Before the start: a SIGQUIT during the start is for the program, too.
	quit := make(chan struct{}, 1)
	defer e.interrupts.passQuit(func() { quit <- struct{}{} })()
	passed := make(chan os.Signal, 8)
	defer notifyPassedOn(passed)()
	p, err := m.Exec(ctx, spec)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()

	// From here on the end of ctx only asks the program to end.
	alive, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	if spec.Terminal {
		stop := e.followSize(alive, p)
		defer stop()
	}
	go func() {
		for {
			select {
			case <-quit: // if the program ignores it, the next signal interrupts the command
				_ = e.signal(alive, p, syscall.SIGQUIT)
			case s := <-passed:
				_ = e.signal(alive, p, s.(syscall.Signal))
			case <-alive.Done():
				return
			}
		}
	}()
	ended := context.AfterFunc(ctx, func() { cancel(e.end(alive, p, stop)) })
	defer ended()
	code, err = p.Wait(alive)
	if err == nil && outOfMemory(p) {
		e.say("strata: the container's memory limit was reached (OOM)")
	}
	return code, err
}

// rawTerminal puts the terminal into raw mode until restore is called.
func (e *env) rawTerminal() (restore func(), err error) {
	fd := e.stdinFd()
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	put := func() { _ = term.Restore(fd, old) } // best effort
	stop := e.interrupts.onExit(put)
	return func() { stop(); put() }, nil
}

// stdinFd returns the file descriptor of standard input, which must be a terminal.
func (e *env) stdinFd() int {
	fd, _ := terminal(e.stdin)
	return fd
}

var (
	errSilent   = errors.New("the guest does not answer; the program is left to itself")
	errLeft     = errors.New("the program is left to itself")
	errStubborn = errors.New("the program does not end")
)

// end sends a program the signal stop, and SIGKILL after the grace. It returns an error if the program does not end,
// and nil when alive ends.
func (e *env) end(alive context.Context, p vmm.Process, stop syscall.Signal) error {
	for _, sig := range []syscall.Signal{stop, syscall.SIGKILL} {
		sent := time.Now()
		if err := e.signal(alive, p, sig); err != nil && alive.Err() == nil {
			if errors.Is(err, vmm.ErrProtocol) {
				return fmt.Errorf("%w: %w", errLeft, err)
			}
			return fmt.Errorf("%w: %w", errSilent, err)
		}
		t := time.NewTimer(e.grace - time.Since(sent))
		defer t.Stop()
		select {
		case <-alive.Done():
			return nil
		case <-t.C:
		}
	}
	return errStubborn
}

// signal sends a signal to a program. It times out after half the grace.
func (e *env) signal(ctx context.Context, p vmm.Process, sig syscall.Signal) error {
	limited, cancel := context.WithTimeout(ctx, e.grace/2)
	defer cancel()
	return p.Signal(limited, int(sig))
}

// followSize passes changes of the terminal's size to the program, until stop is called.
func (e *env) followSize(ctx context.Context, p vmm.Process) (stop func()) {
	fd, ok := terminal(e.stdin)
	if !ok {
		return func() {}
	}
	changed := make(chan os.Signal, 1)
	stop = notifyResize(changed)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				w, h := terminalSize(fd)
				_ = p.Resize(ctx, w, h) // the next change tries again
			}
		}
	}()
	return stop
}
