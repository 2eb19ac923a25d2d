package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func runCommands(e *env) []*cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Sources: cli.EnvVars("STRATA_VM"), Usage: "use the running VM `NAME` (default: one of its own, stopped at the end)"},
		&cli.StringFlag{Name: "isolation", Value: "hypervisor", Usage: "hypervisor: in a VM; process: on this Linux system itself, as root or in a user namespace"},
		&cli.StringFlag{Name: "id", Usage: "of the container (default: made up)"},
		&cli.StringFlag{Name: "scratch", TakesFile: true, Usage: "`DIR` with the writable disk (default: one of its own, removed at the end)"},
		&cli.StringFlag{Name: "scratch-size", Value: defaultScratchSize, Usage: "of the disk of its own, which grows with what is written, such as 512M"},
		&cli.BoolFlag{Name: "read-only", Usage: "no scratch: the root cannot be written"},
		uncheckedFlag(),
		&cli.StringFlag{Name: "entrypoint", Usage: "`PROGRAM` instead of the image's entrypoint; empty for none"},
	}
	flags = append(append(flags, startFlags()...), imageFlags()...)
	return []*cli.Command{{
		Name: "run", Usage: "start a VM, mount an image or layers, run a program, and take all away again", ArgsUsage: "IMAGE|LAYER... [-- PROGRAM [ARG...]]",
		Description: sources + "It is imported into the store when it is not there; entrypoint, program, environment, folder and\n" +
			"user are those of the image where the command line does not say otherwise.\n" +
			"LAYERs are folders or tars, the top-most first. What run makes for itself it removes.\n" +
			"The exit code is that of the program; 125 when it could not be started.\n\n" +
			examples("strata run rootfs.tar -- cat /etc/os-release", "strata run debian:12 -- cat /etc/os-release", "strata run -it /layers/app /layers/debian -- bash",
				"strata run --vm default /layers/debian -- ls -l /"),
		Flags:  append(flags, processFlags()...),
		Action: e.runAll,
	}}
}

func (e *env) runAll(ctx context.Context, cmd *cli.Command) (err error) {
	id, err := runArgs(cmd, e.command)
	if err != nil {
		return err
	}
	spec, err := e.spec(cmd, e.command)
	if err != nil {
		return err
	}
	// Everything is read before anything is made.
	if _, err := e.vmOptions(cmd, ""); err != nil {
		return err
	}
	if cmd.String("isolation") == "process" {
		if _, err := e.vmDir(cmd, hostVM); err != nil {
			return &exitError{exitNotRun, err}
		}
	}
	scratchSize, err := parseSize(cmd.String("scratch-size"))
	if err != nil {
		return usage(cmd, "--scratch-size: %w", err)
	}
	if !cmd.Bool("dry-run") {
		e.sweepBefore(ctx, cmd, func(r runRecord) bool { return r.Own || r.VM == "" }) // of other VMs whoever opens them does
	}
	r, err := e.beginRun(ctx, cmd, id)
	if err != nil {
		return &exitError{exitNotRun, err}
	}
	defer func() {
		if uerr := e.endRun(ctx, cmd, r); uerr != nil {
			e.say("strata: tidying up: %v; to try again: strata recover", uerr)
			if err == nil {
				err = &exitError{code: exitFailure}
			}
		}
	}()
	if err := e.prepare(ctx, cmd, r, scratchSize, &spec); err != nil {
		if _, ok := errors.AsType[*exitError](err); ok {
			return err
		}
		return &exitError{exitNotRun, err}
	}
	if cmd.Bool("dry-run") {
		return nil
	}
	return e.runIn(ctx, cmd, r.VM, spec)
}

// runArgs checks a command line of run and gives the id of the container.
func runArgs(cmd *cli.Command, program []string) (id string, err error) {
	args := cmd.Args().Slice()
	process := cmd.String("isolation") == "process"
	if id = cmd.String("id"); id == "" {
		id = "run-" + strings.ToLower(rand.Text()[:8])
	}
	switch {
	case len(args) == 0:
		err = usage(cmd, "give an image or at least one layer")
	case len(program) == 0 && !isImage(args):
		err = usage(cmd, "give a program after --, such as: strata run %s -- /bin/sh", strings.Join(args, " "))
	case !process && cmd.String("isolation") != "hypervisor":
		err = usage(cmd, "--isolation %q: use hypervisor or process", cmd.String("isolation"))
	case process && cmd.String("vm") != "":
		err = usage(cmd, "--isolation=process and --vm exclude each other")
	case cmd.Bool("read-only") && cmd.IsSet("scratch"):
		err = usage(cmd, "--read-only and --scratch exclude each other")
	case cmd.IsSet("scratch-size") && (process || cmd.Bool("read-only") || cmd.IsSet("scratch")):
		err = usage(cmd, "--scratch-size is for the disk that run makes: not with --scratch, --read-only or --isolation=process")
	case !validName.MatchString(id):
		err = usage(cmd, "container id %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first", id)
	case id == hostVM && !process && cmd.String("vm") == "":
		err = usage(cmd, "container id %q: the VM of the run would have this name, which is that of this system itself", id)
	}
	return id, err
}

// prepare makes everything that the program needs and mounts it.
func (e *env) prepare(ctx context.Context, cmd *cli.Command, r *runState, scratchSize int64, spec *vmm.ProcessSpec) (err error) {
	var folders []string
	if args := cmd.Args().Slice(); isImage(args) {
		use, err := e.useImage(ctx, cmd, args[0], "run of "+r.id)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, use.lease.Release()) }()
		if err := applyConfig(cmd, spec, use.config, e.command); err != nil {
			return err
		}
		folders = use.folders
	} else if folders, err = e.layerFolders(ctx, cmd, r.dir); err != nil {
		return err
	}
	req, err := request(cmd, r.id, folders)
	if err != nil {
		return err
	}
	if req.Scratch == "" && !cmd.Bool("read-only") {
		req.Scratch = filepath.Join(r.dir, "scratch")
		if !cmd.Bool("dry-run") {
			make := e.makeScratch
			if cmd.String("isolation") == "process" {
				make = folderScratch
			}
			if _, err := make(ctx, cmd, req.Scratch, scratchSize); err != nil {
				return err
			}
		}
	}
	vm, err := e.runVM(ctx, cmd, r)
	if err != nil {
		return err
	}
	// While the program runs others may use the VM.
	defer func() { err = errors.Join(err, vm.Close()) }()
	e.mountIn(cmd, &req, vm)
	m, err := layers.Mount(ctx, req)
	if err != nil {
		return e.advise(err, r.VM, r.id)
	}
	spec.ContainerID, spec.Root = m.ID, m.Root
	return nil
}

// layerFolders imports the tars among the layers.
func (e *env) layerFolders(ctx context.Context, cmd *cli.Command, work string) ([]string, error) {
	var folders []string
	for i, arg := range cmd.Args().Slice() {
		fi, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		if fi.IsDir() {
			folders = append(folders, arg)
			continue
		}
		dir := filepath.Join(work, fmt.Sprintf("layer%d", i))
		if cmd.Bool("dry-run") {
			return nil, fmt.Errorf("layer %s: a dry run imports nothing; import it first: strata import %s DIR", arg, arg)
		}
		if _, err := e.convert(ctx, cmd, arg, dir); err != nil {
			return nil, err
		}
		folders = append(folders, dir)
	}
	return folders, nil
}

// runVM takes up the VM that was asked for, or starts one.
func (e *env) runVM(ctx context.Context, cmd *cli.Command, r *runState) (*uvm.UtilityVM, error) {
	name := cmd.String("vm")
	if cmd.String("isolation") == "process" {
		name = hostVM
	}
	if name == "" && cmd.Bool("dry-run") {
		return e.open(ctx, cmd, r.id)
	}
	if name != "" {
		vm, err := e.open(ctx, cmd, name)
		if err != nil {
			return nil, err
		}
		// A container that is there already is not ours to take away.
		if _, err = vm.FindClaim(r.id); err == nil {
			err = e.advise(fmt.Errorf("container %q: %w", r.id, uvm.ErrClaimed), name, r.id)
		} else {
			err = r.note(name, false)
		}
		if err != nil {
			return nil, errors.Join(err, vm.Close())
		}
		return vm, nil
	}
	dir, err := e.vmDir(cmd, r.id)
	if err != nil {
		return nil, err
	}
	if exists(dir) {
		return nil, fmt.Errorf("there is a VM %q already; choose another --id, or to run in it: --vm %s", r.id, r.id)
	}
	o, err := e.vmOptions(cmd, dir)
	if err != nil {
		return nil, err
	}
	if err := r.note(r.id, true); err != nil {
		return nil, err
	}
	vm, err := strata.StartVM(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start a VM: %w", err)
	}
	return vm, nil
}

// folderScratch makes a scratch for this system itself: a folder that is written to.
func folderScratch(_ context.Context, _ *cli.Command, dir string, _ int64) (string, error) {
	return dir, os.MkdirAll(dir, 0o700)
}
