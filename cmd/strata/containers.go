package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

// containers returns the containers of the state directory, after it has cleaned up after supervisors that were killed.
func (e *env) containers(ctx context.Context, cmd *cli.Command) (*strata.Containers, error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return nil, err
	}
	cs := runs.Containers()
	if cmd.Bool("dry-run") {
		return cs, nil
	}
	e.buryBefore(ctx, cs)
	return cs, nil
}

// buryBefore cleans up after supervisors that were killed, before another operation. Errors are only printed.
func (e *env) buryBefore(ctx context.Context, cs *strata.Containers) {
	names, err := cs.Sweep(ctx)
	for _, name := range names {
		e.say("strata: what the interrupted run %s left is taken away", name)
	}
	if err != nil {
		e.say("strata: %v; to try again: strata recover", err)
	}
}

// bury cleans up after supervisors that were killed, and returns the names of their containers.
func (e *env) bury(ctx context.Context, cmd *cli.Command) ([]string, error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return nil, err
	}
	return runs.Containers().Sweep(ctx)
}

// eachContainer calls do for each container named by the arguments, also after an error, and joins the errors.
func (e *env) eachContainer(ctx context.Context, cmd *cli.Command,
	do func(*strata.Containers, strata.ContainerRecord) error) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give the name or the id of a container")
	}
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range cmd.Args().Slice() {
		rec, err := cs.Find(ref)
		if cmd.Bool("force") && errors.Is(err, strata.ErrContainerRecord) {
			err = nil // rm removes what is left of it
		}
		if err == nil {
			err = do(cs, rec)
		}
		errs = append(errs, adviseContainer(err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// oneContainer returns the container named by the only argument.
func (e *env) oneContainer(ctx context.Context, cmd *cli.Command) (*strata.Containers, strata.ContainerRecord, error) {
	if cmd.Args().Len() != 1 {
		return nil, strata.ContainerRecord{}, usage(cmd, "give the name or the id of one container")
	}
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return nil, strata.ContainerRecord{}, err
	}
	rec, err := cs.Find(cmd.Args().First())
	return cs, rec, adviseContainer(err)
}

func adviseContainer(err error) error {
	if errors.Is(err, strata.ErrNoContainer) {
		return fmt.Errorf("%w; strata ps --all lists them", err)
	}
	return err
}

func psCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "ps", Usage: "list containers of strata run",
		Description: "Those that run, with --all also those that have ended and are still there. STATUS has the exit\n" +
			"code. What is mounted by strata mount is listed by strata ls.\n\n" +
			examples("strata ps", "strata ps -a", "strata rm $(strata ps -aq)"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also those that do not run, or are about to be started"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only the ids"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "whole ids and command lines"},
			&cli.IntFlag{Name: "last", Aliases: []string{"n"}, HideDefault: true,
				Usage: "the `N` that were made last, in all states"},
			&cli.BoolFlag{Name: "latest", Aliases: []string{"l"}, Usage: "the one that was made last"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"},
				Usage: "`KEY=VALUE`: name, id, status or ancestor, an image (repeat)"},
			&cli.StringFlag{Name: "format",
				Usage: "`TEMPLATE` of Go for each, such as '{{.Names}} {{.Status}}'; json: as --json"},
		},
		Action: e.ps,
	}, {
		Name: "inspect", Usage: "show all that is known of containers", ArgsUsage: "CONTAINER...",
		Description: "As JSON, also of what strata mount has mounted. For images: strata image inspect. " +
			"For VMs: strata vm inspect.\n\n" +
			examples("strata inspect web", "strata inspect -f '{{.State.Status}} {{.State.ExitCode}}' web"),
		Flags:  []cli.Flag{formatFlag("{{.State.Status}}, {{.State.ExitCode}}, {{json .Config}} or {{.Record.VM}}")},
		Action: e.inspectContainers,
	}}
}

// listedContainer is a line of ps.
type listedContainer struct {
	ID       string                `json:"id"`
	Name     string                `json:"name"`
	Image    string                `json:"image"`
	Command  []string              `json:"command"`
	Created  time.Time             `json:"created"`
	Started  time.Time             `json:"started,omitzero"`
	Finished time.Time             `json:"finished,omitzero"`
	State    strata.ContainerState `json:"state"`
	Status   string                `json:"status"`
	ExitCode int                   `json:"exitCode"`
	Error    string                `json:"error,omitempty"`
	VM       string                `json:"vm,omitempty"`
	Ports    []vmm.PortForward     `json:"ports,omitempty"` // of this system, while it runs
}

func (e *env) ps(ctx context.Context, cmd *cli.Command) error {
	meets, err := psFilter(cmd)
	if err != nil {
		return err
	}
	last := cmd.Int("last")
	if cmd.Bool("latest") {
		last = 1
	}
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return err
	}
	records, err := cs.List() // newest first
	now := time.Now()
	all := []listedContainer{}
	for _, r := range records {
		if !meets(r) || r.State != strata.ContainerRunning && !cmd.Bool("all") && last <= 0 && !filtersState(cmd) {
			continue
		}
		if last > 0 && len(all) == last {
			break
		}
		if r.State != strata.ContainerRunning {
			r.Ports = nil // its ports are free
		}
		all = append(all, listedContainer{r.ID, r.Name, r.Image, r.Process.Args, r.Created, r.Started, r.Finished, r.Status(),
			statusOf(r, now), r.ExitCode, r.Error, r.VM, r.Ports})
	}
	switch f := cmd.String("format"); {
	case cmd.Bool("json"), f == "", f == "table":
	case f == "json":
		return errors.Join(err, writeJSON(e.stdout, all, "  "))
	default:
		return errors.Join(err, formatEach(e, cmd, psLines(cmd, all, now)))
	}
	perr := e.print(cmd, all, func(w io.Writer) { containerTable(w, cmd, all, now) })
	return errors.Join(err, perr)
}

func containerTable(w io.Writer, cmd *cli.Command, all []listedContainer, now time.Time) {
	id := func(c listedContainer) string {
		if cmd.Bool("no-trunc") {
			return c.ID
		}
		return shortID(c.ID)
	}
	if cmd.Bool("quiet") {
		for _, c := range all {
			row(w, "%s\n", id(c))
		}
		return
	}
	fmt.Fprintln(w, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES")
	for _, c := range all {
		line := strings.Join(c.Command, " ")
		if short := []rune(line); len(short) > 20 && !cmd.Bool("no-trunc") {
			line = string(short[:19]) + "…"
		}
		row(w, "%s\t%s\t%q\t%s\t%s\t%s\t%s\n", id(c), c.Image, line, ago(c.Created, now), c.Status,
			portList(c.Ports), c.Name)
	}
}

// portList is the column PORTS.
func portList(ports []vmm.PortForward) string {
	var list []string
	for _, p := range ports {
		list = append(list, p.String())
	}
	return strings.Join(list, ", ")
}

// shortID returns an id as it is displayed.
func shortID(id string) string { return id[:min(len(id), 12)] }

// statusOf returns the state of a container as docker displays it.
func statusOf(r strata.ContainerRecord, now time.Time) string {
	words := []string{"Created"}
	switch r.State {
	case strata.ContainerRunning:
		words = []string{"Up"}
		if !r.Started.IsZero() {
			words = append(words, duration(now.Sub(r.Started)))
		}
		if r.Paused {
			words = append(words, "(Paused)")
		}
	case strata.ContainerExited:
		words = []string{fmt.Sprintf("Exited (%d)", r.ExitCode)}
		if !r.Finished.IsZero() {
			words = append(words, ago(r.Finished, now))
		}
	}
	return strings.Join(words, " ")
}

// ago returns the time since t, for display.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return duration(now.Sub(t)) + " ago"
}

// duration formats a duration for display.
func duration(d time.Duration) string {
	for _, unit := range []struct {
		d     time.Duration
		name  string
		least int
	}{{24 * time.Hour, "day", 2}, {time.Hour, "hour", 2}, {time.Minute, "minute", 1}, {time.Second, "second", 1}} {
		if n := int(d / unit.d); n >= unit.least {
			return count(n, unit.name)
		}
	}
	return "less than a second"
}

func removeCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "rm", Usage: "remove containers that have ended", ArgsUsage: "CONTAINER...",
		Description: "With what they wrote, and their logs.\n\n" +
			examples("strata rm web", "strata rm --force web db", "strata container prune"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "also those that run, whose programs are killed"},
			&cli.BoolFlag{Name: "volumes", Aliases: []string{"v"}, Hidden: true,
				Usage: "volumes without a name go with the container anyway"},
		},
		Action: e.removeContainers,
	}, {
		Name: "container", Usage: "look after containers; as docker's group also ls, rm, run and the others",
		Commands: []*cli.Command{{
			Name: "prune", Usage: "remove all containers that have ended",
			Description: "With what they wrote, and their logs. It does not ask.\n\n" + examples("strata container prune"),
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Hidden: true, Usage: "it does not ask anyway"},
			},
			Action: e.pruneContainers,
		}},
	}}
}

func (e *env) removeContainers(ctx context.Context, cmd *cli.Command) error {
	return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
		if cmd.Bool("dry-run") {
			return e.would(cmd, "remove container %s", r.Name)
		}
		running, err := cs.Running(r.Name)
		if running && cmd.Bool("force") { // kill it without waiting for its stop signal
			err = e.killAndWait(ctx, cs, r)
		} else if err != nil { // its lock cannot be checked: Remove reports that
			err = nil
		}
		if err == nil {
			err = cs.Remove(ctx, r.Name)
		}
		switch {
		case errors.Is(err, strata.ErrContainerRunning):
			return fmt.Errorf("%w: stop it first (strata stop %s), or: strata rm --force %[2]s", err, r.Name)
		case running && errors.Is(err, strata.ErrNoContainer): // removed by its supervisor (--rm)
		case err != nil:
			return err
		}
		return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
	})
}

func (e *env) pruneContainers(ctx context.Context, cmd *cli.Command) error {
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return err
	}
	records, err := cs.List()
	errs := []error{err}
	gone := []named{}
	for _, r := range records {
		if r.State != strata.ContainerExited {
			continue
		}
		if !cmd.Bool("dry-run") {
			err := cs.Remove(ctx, r.Name)
			if errors.Is(err, strata.ErrContainerRunning) || errors.Is(err, strata.ErrNoContainer) {
				continue // it has just been started, or removed
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		gone = append(gone, named{r.ID, r.Name})
	}
	slices.Reverse(gone) // oldest first
	errs = append(errs, e.print(cmd, gone, func(w io.Writer) {
		for _, g := range gone {
			row(w, "%s\n", g.Name)
		}
	}))
	return errors.Join(errs...)
}
