package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

// limitFlags are the flags of run that update has too.
var limitFlags = []string{"memory", "memory-swap", "cpus", "cpu-shares", "pids-limit"}

func pauseCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "pause", Usage: "stop the processes of containers, until strata unpause", ArgsUsage: "CONTAINER...",
		Description: "They keep what they have, and get no time. Nothing can be started in a container meanwhile;\n" +
			"strata stop and strata kill end it.\n\n" + examples("strata pause web", "strata unpause web"),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return e.eachRunning(ctx, cmd, "pause", (*strata.ContainerControl).Pause)
		},
	}, {
		Name: "unpause", Usage: "let containers go on that are paused", ArgsUsage: "CONTAINER...",
		Description: examples("strata unpause web"),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return e.eachRunning(ctx, cmd, "unpause", (*strata.ContainerControl).Resume)
		},
	}, {
		Name: "update", Usage: "change the limits of containers that run", ArgsUsage: "CONTAINER...",
		Description: "Those that are given. They stay when a container is stopped and started again. A limit below what\n" +
			"a container uses is refused, or ends programs of it, as the kernel does it.\n\n" +
			examples("strata update --memory 256m web", "strata update --cpus 0.5 --pids-limit 100 web db"),
		Flags:  limitsToUpdate(),
		Action: e.update,
	}}
}

// limitsToUpdate are the flags of update.
func limitsToUpdate() (flags []cli.Flag) {
	for _, f := range containerFlags() {
		if slices.Contains(limitFlags, f.Names()[0]) {
			flags = append(flags, f)
		}
	}
	return flags
}

// eachRunning calls do for each running container that the arguments name, and prints their names.
func (e *env) eachRunning(ctx context.Context, cmd *cli.Command, verb string,
	do func(*strata.ContainerControl, context.Context) error) error {
	return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
		if cmd.Bool("dry-run") {
			return e.would(cmd, "%s container %s", verb, r.Name)
		}
		if err := needRunning(cs, r); err != nil {
			return err
		}
		if err := do(cs.Control(r.Name), ctx); err != nil {
			return containerError(r, err)
		}
		return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
	})
}

// containerError adds the container, and a remedy if there is one, to an error of a running container.
func containerError(r strata.ContainerRecord, err error) error {
	switch {
	case errors.Is(err, vmm.ErrPaused):
		return fmt.Errorf("container %s is %w; to let it go on: strata unpause %[1]s", r.Name, paused{})
	case errors.Is(err, vmm.ErrNotPaused):
		return fmt.Errorf("container %s: %w", r.Name, vmm.ErrNotPaused)
	}
	return fmt.Errorf("container %s: %w", r.Name, err)
}

// paused is vmm.ErrPaused in one word.
type paused struct{}

func (paused) Error() string { return "paused" }
func (paused) Unwrap() error { return vmm.ErrPaused }

func (e *env) update(ctx context.Context, cmd *cli.Command) error {
	if len(setFlags(cmd, limitFlags)) == 0 {
		return usage(cmd, "give a limit, such as --memory 256m")
	}
	var o strata.SpecOptions
	if err := limitOptions(cmd, &o); err != nil {
		return err
	}
	r, err := o.Resources()
	if err != nil {
		return usage(cmd, "%w", err)
	}
	return e.eachRunning(ctx, cmd, "update", func(c *strata.ContainerControl, ctx context.Context) error {
		return c.Update(ctx, *r)
	})
}

// letGoOn resumes a container if it is paused, so that it handles a signal.
func letGoOn(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord) error {
	if !r.Paused {
		return nil
	}
	err := cs.Control(r.Name).Resume(ctx)
	if errors.Is(err, vmm.ErrNotPaused) || errors.Is(err, strata.ErrContainerStopped) {
		return nil
	}
	return err
}
