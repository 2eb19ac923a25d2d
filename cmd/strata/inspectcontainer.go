package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
)

// inspectContainers implements inspect. It always prints an array.
func (e *env) inspectContainers(ctx context.Context, cmd *cli.Command) error {
	f := cmd.String("format")
	if f == "json" || cmd.Bool("json") {
		f = ""
	}
	if f != "" {
		if _, err := parseTemplate(cmd); err != nil {
			return err
		}
	}
	if !cmd.Args().Present() {
		return usage(cmd, "give the name or the id of a container")
	}
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return err
	}
	all, views := []any{}, []containerView{}
	var errs []error
	for _, ref := range cmd.Args().Slice() {
		r, err := cs.Find(ref)
		if err == nil {
			r.Launch = nil // internal
			all, views = append(all, r), append(views, viewOf(r))
			continue
		}
		if !errors.Is(err, strata.ErrNoContainer) {
			errs = append(errs, err)
			continue
		}
		found, merr := e.findMounted(ctx, cmd, ref)
		for _, m := range found {
			all, views = append(all, m), append(views, viewOfMounted(m))
		}
		if len(found) == 0 {
			merr = errors.Join(fmt.Errorf("%w; of images: strata image inspect", adviseContainer(err)), merr)
		}
		errs = append(errs, merr)
	}
	if f != "" {
		return errors.Join(append(errs, formatEach(e, cmd, views))...)
	}
	return errors.Join(append(errs, writeJSON(e.stdout, all, "  "))...)
}

// mountedContainer is the output of inspect for a container of strata mount.
type mountedContainer struct {
	container
	Config *image.Config `json:"config,omitempty"` // of its image: how programs are run in it
}

// findMounted returns the containers of strata mount with an id, of all VMs.
func (e *env) findMounted(ctx context.Context, cmd *cli.Command, id string) (found []mountedContainer, err error) {
	names, err := e.vmNames(cmd)
	errs := []error{err}
	for _, name := range names {
		v, status, err := e.view(ctx, cmd, name)
		if errors.Is(err, strata.ErrNoVM) {
			continue
		}
		errs = append(errs, err)
		for _, c := range status.Claims {
			if c.ID != id {
				continue
			}
			line, kept, err := containerOf(v, c)
			m := mountedContainer{container: line}
			if err == nil && kept != nil {
				var config image.Config
				if config, err = strata.KeptConfig(kept); err == nil {
					m.Config = &config
				}
			}
			errs, found = append(errs, err), append(found, m)
		}
	}
	return found, errors.Join(errs...)
}

func viewOfMounted(m mountedContainer) containerView {
	r := strata.ContainerRecord{ID: m.ID, Name: m.ID, VM: m.VM, Image: m.Image, Digest: m.Digest, Layers: m.Layers,
		State: strata.ContainerState(m.Phase)}
	if m.Config != nil {
		r.Process = strata.ContainerProcess{Args: m.Config.Cmd, Env: m.Config.Env, Dir: m.Config.WorkingDir,
			User: m.Config.User}
	}
	return viewOf(r)
}
