package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/vmm/qemu"
)

// templateAge is how long an unused VM template is kept.
const templateAge = 7 * 24 * time.Hour

// templateCache returns the directory with the VM templates.
func (e *env) templateCache(cmd *cli.Command) (string, error) {
	state, err := e.stateDir(cmd)
	return filepath.Join(state, "cache", "kvm"), err
}

// templateGC removes unused VM templates and adds them to r, by names that differ from those of the store's objects.
func (e *env) templateGC(ctx context.Context, cmd *cli.Command, r *store.Removed) error {
	dir, err := e.templateCache(cmd)
	if err != nil {
		return err
	}
	since := time.Now()
	if !cmd.Bool("templates") {
		since = since.Add(-templateAge)
	}
	gone, err := qemu.RemoveTemplates(ctx, dir, since, cmd.Bool("dry-run"))
	if errors.Is(err, qemu.ErrTemplateBusy) {
		e.say("strata: templates of VMs are left as they are: %v", err)
		return nil
	}
	for _, t := range gone {
		r.Objects = append(r.Objects, "template "+t.Key)
		r.Bytes += t.Bytes
	}
	return err
}

// sweepTemplates removes what processes left that were killed while they made templates.
func (e *env) sweepTemplates(ctx context.Context, cmd *cli.Command) error {
	dir, err := e.templateCache(cmd)
	if err != nil {
		return err
	}
	if _, err = qemu.RemoveTemplates(ctx, dir, time.Time{}, false); errors.Is(err, qemu.ErrTemplateBusy) {
		return nil // another process makes or removes templates
	}
	return err
}
