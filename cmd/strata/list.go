package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func listCommands(e *env) []*cli.Command {
	return []*cli.Command{
		{
			Name: "ls", Aliases: []string{"list"}, Usage: "list the containers that are mounted",
			Description: examples("strata ls", "strata --json ls --vm big"),
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "vm", Sources: cli.EnvVars("STRATA_VM"),
					Usage: "only those in the VM `NAME` (default: in all)"},
			},
			Action: e.list,
		},
		{
			Name: "recover", Usage: "finish or take back what interrupted commands left", ArgsUsage: "[NAME...]",
			Description: "Every command that works with a VM does this first; this one does nothing else. It also\n" +
				"removes what runs that were killed left, and the state of VMs that do not run any more.\n\n" +
				examples("strata recover", "strata recover big"),
			Action: e.recover,
		},
	}
}

// container is one line of ls.
type container struct {
	ID      string    `json:"id"`
	VM      string    `json:"vm"`
	Phase   uvm.Phase `json:"phase"`
	Root    string    `json:"root,omitempty"`
	Image   string    `json:"image,omitempty"` // as the user called it
	Digest  string    `json:"digest,omitempty"`
	Layers  []string  `json:"layers"`
	Scratch string    `json:"scratch,omitempty"`
	Held    int       `json:"held"`             // resources
	Paused  string    `json:"paused,omitempty"` // why its VM is paused
}

// containerOf returns a container's line of ls, and its recorded image.
func containerOf(v vmView, c uvm.ClaimStatus) (line container, kept *layers.Image, err error) {
	var meta layers.Meta
	if err = json.Unmarshal(c.Meta, &meta); err != nil {
		err = fmt.Errorf("container %q: %w", c.ID, err)
	}
	line = container{ID: c.ID, VM: v.Name, Phase: c.Phase, Root: meta.Root, Layers: meta.Layers, Scratch: meta.Scratch,
		Held: len(c.Leases), Paused: v.Paused}
	if kept = meta.Image; kept != nil {
		line.Image, line.Digest = kept.Name, kept.Digest
	}
	return line, kept, err
}

func (e *env) list(ctx context.Context, cmd *cli.Command) error {
	names := []string{cmd.String("vm")}
	if names[0] == "" {
		var err error
		if names, err = e.vmNames(cmd); err != nil {
			return err
		}
	}
	all := []container{}
	var errs []error
	for _, name := range names {
		v, status, err := e.view(ctx, cmd, name)
		if err != nil {
			if !errors.Is(err, strata.ErrNoVM) || cmd.String("vm") != "" {
				errs = append(errs, err)
			}
			continue
		}
		for _, c := range status.Claims {
			line, _, err := containerOf(v, c)
			errs = append(errs, err)
			all = append(all, line)
		}
		if v.Paused != "" {
			e.say("strata: VM %q is paused: %s", name, v.Paused)
		}
	}
	err := e.print(cmd, all, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tVM\tPHASE\tROOT\tLAYERS\tSCRATCH")
		for _, c := range all {
			row(w, "%s\t%s\t%s\t%s\t%d\t%s\n", c.ID, c.VM, c.Phase, c.Root, len(c.Layers), c.Scratch)
		}
	})
	return errors.Join(append(errs, err)...)
}

// recovered is the output of recover for a VM, or for a run that was killed.
type recovered struct {
	VM         string `json:"vm,omitempty"`
	Run        string `json:"run,omitempty"` // a killed run that was cleaned up
	Running    bool   `json:"running"`
	Containers int    `json:"containers"`
	Error      string `json:"error,omitempty"`
}

func (e *env) recover(ctx context.Context, cmd *cli.Command) error {
	names := cmd.Args().Slice()
	for _, name := range names {
		if _, err := e.vmDir(cmd, name); err != nil {
			return err
		}
	}
	out := []recovered{}
	var errs []error
	ids, err := e.sweep(ctx, cmd, func(r strata.RunRecord) bool {
		return cmd.Args().Len() == 0 || slices.Contains(names, r.VM)
	})
	for _, id := range ids {
		out = append(out, recovered{Run: id})
	}
	errs = append(errs, err)
	if len(names) == 0 && !cmd.Bool("dry-run") {
		buried, err := e.bury(ctx, cmd)
		for _, name := range buried {
			if !slices.Contains(ids, name) {
				out, ids = append(out, recovered{Run: name}), append(ids, name)
			}
		}
		errs = append(errs, err, e.sweepTemplates(ctx, cmd))
	}
	if len(names) == 0 {
		var err error
		if names, err = e.vmNames(cmd); err != nil {
			return err
		}
	}
	for _, name := range names {
		r, err := e.recoverVM(ctx, cmd, name)
		if errors.Is(err, strata.ErrNoVM) && slices.Contains(ids, name) {
			continue // the run's own VM, removed with it
		}
		if err != nil {
			errs = append(errs, err)
			r.Error = err.Error()
		}
		out = append(out, r)
	}
	verb := "is taken away"
	if cmd.Bool("dry-run") {
		verb = "would be taken away"
	}
	err = e.print(cmd, out, func(w io.Writer) {
		for _, r := range out {
			switch {
			case r.Run != "":
				fmt.Fprintf(w, "%s: what this interrupted run left %s\n", r.Run, verb)
			case r.Error != "":
				fmt.Fprintf(w, "%s: not everything could be mended\n", r.VM)
			case r.Running:
				fmt.Fprintf(w, "%s: in order, %s\n", r.VM, count(r.Containers, "container"))
			default:
				fmt.Fprintf(w, "%s: does not run; its state %s\n", r.VM, verb)
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (e *env) recoverVM(ctx context.Context, cmd *cli.Command, name string) (recovered, error) {
	r := recovered{VM: name}
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return r, err
	}
	if cmd.Bool("dry-run") {
		info, err := strata.InspectVM(ctx, dir)
		if errors.Is(err, strata.ErrNoVM) && exists(dir) {
			err = nil
		}
		if err != nil || !info.Running {
			return r, e.explain(name, err)
		}
	}
	vm, err := e.open(ctx, cmd, name)
	if errors.Is(err, vmm.ErrGone) || errors.Is(err, strata.ErrNoVM) && exists(dir) {
		// It has ended, or its start was interrupted before there was a machine.
		return r, strata.RemoveVM(ctx, dir)
	}
	if err != nil {
		return r, err
	}
	r.Running = true
	err = vm.Recover(ctx)
	r.Containers = len(vm.Claims())
	if err != nil {
		err = fmt.Errorf("recover VM %q: %w", name, err)
	}
	err = errors.Join(err, vm.Close())
	if err == nil && name == hostVM && r.Containers == 0 {
		// The process that created its state was killed before it wrote the ledger.
		err = strata.RemoveVM(ctx, dir)
		if errors.Is(err, strata.ErrRunning) { // something was mounted meanwhile
			err = nil
		}
	}
	return r, err
}
