package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm/qemu"
)

// runScratch creates the scratch of a run without --scratch.
func (e *env) runScratch(ctx context.Context, cmd *cli.Command, r *strata.Run, in *runInput) (dir string, err error) {
	if r == nil {
		runs, err := e.runs(cmd)
		if err != nil {
			return "", err
		}
		return filepath.Join(runs.Dir, "run", in.id, "scratch"), nil
	}
	dir = filepath.Join(in.folder(r), "scratch")
	if in.held.again() { // reuse the container's scratch
		return dir, nil
	}
	if inProcess(cmd) { // a directory instead of a disk
		return dir, os.MkdirAll(dir, 0o700)
	}
	_, err = e.makeScratch(ctx, cmd, dir, in.scratchSize)
	return dir, err
}

// layerFolders imports those layers that are tars into a directory, which is "" in a dry run.
func (e *env) layerFolders(ctx context.Context, cmd *cli.Command, into string, args []string) ([]string, error) {
	var folders []string
	for i, arg := range args {
		fi, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		if fi.IsDir() {
			folders = append(folders, arg)
			continue
		}
		if into == "" {
			return nil, fmt.Errorf("layer %s: a dry run imports nothing; import it first: strata import %s DIR", arg, arg)
		}
		dir := filepath.Join(into, fmt.Sprintf("layer%d", i))
		if _, err := e.convert(ctx, cmd, arg, dir); err != nil {
			return nil, err
		}
		folders = append(folders, dir)
	}
	return folders, nil
}

// findPrograms returns an error if a program that the container needs is missing on this system, before a VM is
// started.
func (in *runInput) findPrograms(cmd *cli.Command) error {
	if cmd.String("vm") == "" { // else the VM has one, or does not
		if _, err := crun.Find(); err != nil {
			return err
		}
	}
	if in.network != nil && in.network.Namespace == "" {
		if _, err := slirp.Find(); err != nil {
			return err
		}
	}
	if inProcess(cmd) || cmd.String("vm") == hostVM {
		return nil
	}
	return sharable(strata.BindVolumes(in.spec.Spec))
}

// sharable returns an error for volumes that cannot be shared with a VM. A missing path is created as a directory.
func sharable(volumes []layers.Volume) error {
	shares := map[layers.Volume]bool{}
	for _, v := range volumes {
		fi, err := os.Stat(v.Path)
		if err == nil && !fi.IsDir() && !fi.Mode().IsRegular() {
			return fmt.Errorf("volume %s: it is no folder and no regular file: not supported in a VM, only with "+
				"--isolation=process: %w", printable(v.Path), errors.ErrUnsupported)
		}
		if to, err := filepath.EvalSymlinks(v.Path); err == nil {
			v.Path = to
		}
		shares[v] = true
	}
	if len(shares) == 0 {
		return nil
	}
	if err := qemu.CanShare(len(shares)); err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	return nil
}

// runVM opens the VM of --vm, or starts one. In a dry run, r is nil.
func (e *env) runVM(ctx context.Context, cmd *cli.Command, r *strata.Run, in *runInput) (*uvm.UtilityVM, error) {
	id := in.id
	name := cmd.String("vm")
	if inProcess(cmd) {
		name = hostVM
	}
	if r == nil {
		return e.open(ctx, cmd, cmp.Or(name, id))
	}
	if name != "" {
		dir, err := e.vmDir(cmd, name)
		if err == nil {
			err = in.limits.fitsVM(ctx, name, dir)
		}
		if err != nil {
			return nil, err
		}
		e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.VM == name && !r.Own })
		vm, err := r.OpenVM(ctx, name)
		return vm, e.advise(err, name, id)
	}
	behind := e.templateBehind(cmd, &in.vm)
	done := e.status("starting a VM ...")
	vm, err := r.StartVM(ctx, in.vm)
	done()
	if err == nil {
		behind()
	}
	if errors.Is(err, strata.ErrRunID) {
		err = fmt.Errorf("%w; choose another --id, or to run in it: --vm %s", err, id)
	}
	return vm, err
}
