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

// templateAge is how long a template of VMs is kept that is not used.
const templateAge = 7 * 24 * time.Hour

// templateCache is the cache directory with the templates of VMs.
func (e *env) templateCache(cmd *cli.Command) (string, error) {
	state, err := e.stateDir(cmd)
	return filepath.Join(state, "cache", "kvm"), err
}

// templateGC removes templates that are not used, and notes them in r, by names that no object of the store has.
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
