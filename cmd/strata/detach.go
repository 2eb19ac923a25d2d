package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
)

// superviseFlags are the hidden flags by which run is the supervisor of a detached container: in its own session, and
// without standard streams once the program runs. File descriptor 3 is a socket to the command that started it.
func superviseFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "supervise", Hidden: true, Usage: "stand behind a detached container"},
		&cli.StringFlag{Name: "again", Hidden: true, Usage: "start the container `NAME`, which has ended, once more"},
		&cli.BoolFlag{Name: "await", Hidden: true, Usage: "until somebody is attached"},
	}
}

// launch is the recorded command line of a container, by which it can be started again.
type launch struct {
	Args    []string `json:"args"`              // of run
	Program []string `json:"program,omitempty"` // after "--"
	Dashes  bool     `json:"dashes,omitempty"`
	Dir     string   `json:"dir"`
}

// report is a line of JSON from the supervisor to the command that started it.
type report struct {
	Listening bool                    `json:"listening,omitempty"` // the container can be attached to
	Started   *strata.ContainerRecord `json:"started,omitempty"`
}

// detached is the supervisor's connection to the command that started it.
type detached struct {
	e      *env
	again  bool
	await  bool
	launch json.RawMessage
	conn   *os.File
	heard  chan struct{} // closed when the command has attached
	cancel context.CancelCauseFunc
	runs   atomic.Bool // the program runs: the end of the command does not matter any more
}

// supervise runs a detached container.
func (e *env) supervise(ctx context.Context, cmd *cli.Command) error {
	d := &detached{e: e, again: cmd.IsSet("again"), await: cmd.Bool("await"), conn: inherited(3, "the command"),
		heard: make(chan struct{})}
	if !isSocket(d.conn) {
		return usage(cmd, "it is started by strata run --detach and strata start")
	}
	defer d.conn.Close()
	ctx, d.cancel = context.WithCancelCause(ctx)
	defer d.cancel(nil)
	in, err := e.runInput(cmd)
	if err != nil {
		return err
	}
	if d.again {
		in.id = cmd.String("again")
	} else if d.launch, err = e.launch(cmd); err != nil {
		return err
	}
	e.detached = d
	go d.hear()
	return e.runHere(ctx, cmd, &in)
}

// hear waits until the command has attached. If the command ends before the program runs, the run is cancelled.
func (d *detached) hear() {
	in := bufio.NewReader(d.conn)
	if _, err := in.ReadByte(); err == nil {
		close(d.heard)
		_, _ = in.ReadByte() // blocks until the command ends
	}
	if !d.runs.Load() {
		d.cancel(&interruption{syscall.SIGTERM})
	}
}

// listening reports that the container can be attached to and, with --await, waits until the command has attached.
func (d *detached) listening(ctx context.Context) error {
	if !d.await {
		return nil
	}
	if err := writeReport(d.conn, report{Listening: true}); err != nil {
		return err
	}
	select {
	case <-d.heard:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// started reports that the program runs. After that, the supervisor does not depend on the command any more.
func (d *detached) started(r strata.ContainerRecord) {
	d.runs.Store(true)
	r.Launch = nil
	err := writeReport(d.conn, report{Started: &r})
	if err = errors.Join(err, leaveOutput()); err != nil {
		d.e.say("strata: %v", err)
	}
}

func writeReport(w io.Writer, r report) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}

// launch returns the command line of a run as a launch record.
func (e *env) launch(cmd *cli.Command) (json.RawMessage, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	args := e.arguments(cmd)
	if cmd.Bool("supervise") { // by startSupervisor
		args = args[len(superviseArgs(cmd.String("id"))):]
	}
	if vm := cmd.String("vm"); vm != "" && !inProcess(cmd) { // it may come from the environment
		args = append([]string{"--vm", vm}, args...)
	}
	return json.Marshal(launch{Args: args, Program: e.command, Dashes: e.dashes, Dir: dir})
}

// superviseArgs are the arguments that precede those of run when a container is created.
func superviseArgs(id string) []string { return []string{"--supervise", "--id", id} }

// arguments returns the arguments of a command up to "--".
func (e *env) arguments(cmd *cli.Command) []string {
	all := cmd.Root().Args().Slice()
	return slices.Clone(all[1:])
}

// detach starts the supervisor of a container, and prints the container's id once its program runs.
func (e *env) detach(ctx context.Context, cmd *cli.Command, in *runInput) error {
	l, err := e.launch(cmd)
	if err != nil {
		return notRun(err)
	}
	var how launch
	if err := json.Unmarshal(l, &how); err != nil {
		return notRun(err)
	}
	rec, err := e.startSupervisor(ctx, cmd, how, superviseArgs(in.id), nil)
	if err != nil {
		return err
	}
	return e.print(cmd, named{rec.ID, rec.Name}, func(w io.Writer) { fmt.Fprintln(w, rec.ID) })
}

// named is what run --detach prints.
type named struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// startSupervisor starts the supervisor of a container, and waits until the program runs. attach, if not nil, is called
// before that. On error nothing runs, and the supervisor has printed the reason itself.
func (e *env) startSupervisor(ctx context.Context, cmd *cli.Command, how launch, also []string,
	attach func() error) (rec strata.ContainerRecord, err error) {
	state, err := e.stateDir(cmd)
	if err != nil {
		return rec, notRun(err)
	}
	args := []string{"--state-dir", state}
	for _, flag := range []string{"json", "verbose"} {
		if cmd.Bool(flag) {
			args = append(args, "--"+flag)
		}
	}
	args = slices.Concat(args, []string{"run"}, also, how.Args)
	if how.Dashes {
		args = slices.Concat(args, []string{"--"}, how.Program)
	}
	p, conn, err := spawn(args, how.Dir)
	if err != nil {
		return rec, notRun(fmt.Errorf("start the container's supervisor: %w", err))
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWrite() }) // tells it to cancel the run
	defer stop()
	dec := json.NewDecoder(io.LimitReader(conn, 64<<20))
	for {
		var r report
		if err := dec.Decode(&r); err != nil {
			return rec, supervisorFailed(p.Wait())
		}
		switch {
		case r.Started != nil:
			return *r.Started, p.Process.Release()
		case r.Listening && attach != nil:
			if err := attach(); err != nil {
				return rec, errors.Join(err, conn.Close(), p.Wait())
			}
			if _, err := conn.Write([]byte("\n")); err != nil {
				return rec, supervisorFailed(p.Wait())
			}
		}
	}
}

// supervisorFailed returns the error for a supervisor that has exited, with its exit code.
func supervisorFailed(err error) error {
	ee, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case ok && ee.ExitCode() > 0:
		return &exitError{code: ee.ExitCode()}
	case err == nil: // the program ended before the supervisor could report that it runs
		return nil
	}
	return notRun(fmt.Errorf("the container's supervisor was killed: %w", err))
}

func adviseName(err error) error { return fmt.Errorf("%w; choose another --name", err) }
