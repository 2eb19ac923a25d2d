package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
)

func stopCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "stop", Usage: "stop containers: their programs are asked to end, then killed", ArgsUsage: "CONTAINER...",
		Description: "The program gets the stop signal of its image (TERM where it names none, --stop-signal of run),\n" +
			"and KILL when it has not ended in time. What it wrote stays until strata rm.\n\n" +
			examples("strata stop web", "strata stop --time 60 db"),
		Flags: stopFlags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
				if err := e.stopOne(ctx, cmd, cs, r); err != nil || cmd.Bool("dry-run") {
					return err
				}
				return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
			})
		},
	}, {
		Name: "kill", Usage: "send a signal to containers", ArgsUsage: "CONTAINER...",
		Description: examples("strata kill web", "strata kill --signal HUP web"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Value: "KILL", Usage: "`SIGNAL`, by name or number"},
		},
		Action: e.kill,
	}, {
		Name: "wait", Usage: "wait until containers have ended, and print their exit codes", ArgsUsage: "CONTAINER...",
		Description: examples("strata wait web"),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
				code, err := e.waitFor(ctx, cs, r)
				if err != nil {
					return err
				}
				return e.print(cmd, waited{r.Name, code}, func(w io.Writer) { fmt.Fprintln(w, code) })
			})
		},
	}}
}

// stopFlags returns the flags of stop and restart, which stopOne reads.
func stopFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "time", Aliases: []string{"t"}, Value: 10,
			Usage: "`SECONDS` to end by itself; -1: as long as it takes"},
		&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` instead of the container's own"},
	}
}

// waited is the output of wait for a container.
type waited struct {
	Name     string `json:"name"`
	ExitCode int    `json:"exitCode"`
}

// notRunning returns the error that a container does not run.
func notRunning(r strata.ContainerRecord) error {
	return fmt.Errorf("container %s: %w", r.Name, strata.ErrContainerStopped)
}

// needRunning returns an error unless a container runs.
func needRunning(cs *strata.Containers, r strata.ContainerRecord) error {
	running, err := cs.Running(r.Name)
	if err == nil && !running {
		err = notRunning(r)
	}
	return err
}

// mayRun reports whether a container runs or its state is unknown.
func mayRun(cs *strata.Containers, r strata.ContainerRecord) bool {
	running, err := cs.Running(r.Name)
	return running || err != nil
}

func (e *env) kill(ctx context.Context, cmd *cli.Command) error {
	sig, err := parseSignal(cmd.String("signal"))
	if err != nil {
		return usage(cmd, "--signal: %w", err)
	}
	return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
		if cmd.Bool("dry-run") {
			return e.would(cmd, "send signal %d to container %s", int(sig), r.Name)
		}
		if err := needRunning(cs, r); err != nil {
			return err
		}
		err := cs.Control(r.Name).Signal(ctx, int(sig))
		if err == nil && sig == r.Signal() { // its stop signal
			err = letGoOn(ctx, cs, r)
		}
		if err != nil {
			return fmt.Errorf("container %s: %w", r.Name, err)
		}
		return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
	})
}

// stopOne sends a container its stop signal, and kills it if it does not end in time. A container that does not run is
// no error.
func (e *env) stopOne(ctx context.Context, cmd *cli.Command, cs *strata.Containers, r strata.ContainerRecord) error {
	sig := r.Signal()
	if s := cmd.String("signal"); s != "" {
		var err error
		if sig, err = parseSignal(s); err != nil {
			return usage(cmd, "--signal: %w", err)
		}
	}
	seconds := cmd.Int("time")
	if seconds < -1 {
		return usage(cmd, "--time %d: give seconds, or -1 for as long as it takes", seconds)
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "stop container %s", r.Name)
	}
	if !mayRun(cs, r) {
		return nil
	}
	err := cs.Control(r.Name).Signal(ctx, int(sig))
	if err == nil {
		err = letGoOn(ctx, cs, r)
	}
	if errors.Is(err, strata.ErrContainerStopped) { // its program has ended, or was not started yet
		err = nil
	}
	if err != nil {
		return e.goneMeanwhile(ctx, cs, r, err)
	}
	limited, cancel := ctx, context.CancelFunc(func() {})
	if seconds >= 0 {
		limited, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	}
	defer cancel()
	_, err = e.waitFor(limited, cs, r)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return e.killAndWait(ctx, cs, r)
	}
	return err
}

// killTime bounds the wait for a killed container to end.
const killTime = 2 * time.Minute

// killAndWait kills a container and waits until it has ended.
func (e *env) killAndWait(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord) error {
	limited, cancel := context.WithTimeoutCause(ctx, killTime,
		fmt.Errorf("container %s has been killed and does not end: "+
			"strata inspect %[1]s names its supervisor, which can be killed", r.Name))
	defer cancel()
	err := cs.Control(r.Name).Signal(limited, int(syscall.SIGKILL))
	if err == nil || errors.Is(err, strata.ErrContainerStopped) {
		_, err = e.waitFor(limited, cs, r)
	}
	return e.goneMeanwhile(ctx, cs, r, err)
}

// noteTime bounds the wait for the end of a container to be recorded.
const noteTime = time.Second

// goneMeanwhile returns nil instead of err if the container has ended meanwhile.
func (e *env) goneMeanwhile(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord, err error) error {
	if err == nil || !mayRun(cs, r) {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, noteTime)
	defer cancel()
	if _, werr := e.waitFor(limited, cs, r); werr == nil {
		return nil
	}
	return fmt.Errorf("container %s: %w", r.Name, err)
}

// waitFor waits until a container has ended, and returns its exit code.
func (e *env) waitFor(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord) (int, error) {
	if mayRun(cs, r) {
		exit, err := cs.Control(r.Name).Wait(ctx)
		if err == nil {
			return exit.Code, nil
		}
		if ctx.Err() != nil {
			return 0, err
		}
		if mayRun(cs, r) {
			return 0, fmt.Errorf("container %s: %w", r.Name, err)
		}
		e.buryBefore(ctx, cs) // its supervisor was killed, or has ended meanwhile
	}
	now, err := cs.Find(r.ID)
	if err != nil {
		return 0, err
	}
	return now.ExitCode, nil
}
