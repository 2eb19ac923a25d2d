package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// cleanup is the time that run's own tidying may take after it was interrupted.
const cleanup = 60 * time.Second

func runCommands(e *env) []*cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Sources: cli.EnvVars("STRATA_VM"), Usage: "use the running VM `NAME` (default: one of its own, stopped at the end)"},
		&cli.StringFlag{Name: "isolation", Value: "hypervisor", Usage: "hypervisor: in a VM; process: on this Linux system itself, as root"},
		&cli.StringFlag{Name: "id", Usage: "of the container (default: made up)"},
		&cli.StringFlag{Name: "scratch", TakesFile: true, Usage: "`DIR` with the writable disk (default: one of its own, removed at the end)"},
		&cli.BoolFlag{Name: "read-only", Usage: "no scratch: the root cannot be written"},
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

// session is what one run has made and has to take away, last first.
type session struct {
	undo []func(context.Context) error
}

func (s *session) later(f func(context.Context) error) { s.undo = append(s.undo, f) }

// end attempts everything. It has its own time, since the context of the run may have ended.
func (s *session) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	var errs []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i](ctx))
	}
	return errors.Join(errs...)
}

func (e *env) runAll(ctx context.Context, cmd *cli.Command) (err error) {
	if !cmd.Args().Present() {
		return usage(cmd, "give an image or at least one layer")
	}
	if len(e.command) == 0 && !isImage(cmd.Args().Slice()) {
		return usage(cmd, "give a program after --, such as: strata run %s -- /bin/sh", strings.Join(cmd.Args().Slice(), " "))
	}
	if i := cmd.String("isolation"); i != "hypervisor" && i != "process" {
		return usage(cmd, "--isolation %q: use hypervisor or process", i)
	}
	if cmd.String("isolation") == "process" && cmd.String("vm") != "" {
		return usage(cmd, "--isolation=process and --vm exclude each other")
	}
	if cmd.Bool("read-only") && cmd.IsSet("scratch") {
		return usage(cmd, "--read-only and --scratch exclude each other")
	}
	id := cmd.String("id")
	if id == "" {
		id = "run-" + strings.ToLower(rand.Text()[:8])
	}
	if !validName.MatchString(id) {
		return usage(cmd, "container id %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first", id)
	}
	spec, err := e.spec(cmd, e.command)
	if err != nil {
		return err
	}
	s := &session{}
	defer func() {
		if uerr := s.end(ctx); uerr != nil {
			e.say("strata: tidying up: %v; to try again: strata recover", uerr)
			if err == nil {
				err = &exitError{code: exitFailure}
			}
		}
	}()
	m, vm, err := e.prepare(ctx, cmd, s, id, &spec)
	if err != nil {
		if _, ok := errors.AsType[*exitError](err); ok {
			return err
		}
		return &exitError{exitNotRun, err}
	}
	if cmd.Bool("dry-run") {
		return nil
	}
	spec.ContainerID, spec.Root = m.ID, m.Root
	return e.runProgram(ctx, vm.Machine(), spec)
}

// prepare makes everything that the program needs and mounts it.
func (e *env) prepare(ctx context.Context, cmd *cli.Command, s *session, id string, spec *vmm.ProcessSpec) (*layers.Mounted, *uvm.UtilityVM, error) {
	if _, err := e.vmOptions(cmd, ""); err != nil {
		return nil, nil, err // before anything is made
	}
	if cmd.String("isolation") == "process" {
		if _, err := e.vmDir(cmd, hostVM); err != nil {
			return nil, nil, err
		}
	}
	work, err := e.workDir(cmd, id)
	if err != nil {
		return nil, nil, err
	}
	var folders []string
	if args := cmd.Args().Slice(); isImage(args) {
		var cfg image.Config
		if folders, cfg, err = e.useImage(ctx, cmd, s, args[0], "run of "+id); err == nil {
			err = applyConfig(cmd, spec, cfg, e.command)
		}
	} else {
		folders, err = e.layerFolders(ctx, cmd, s, work)
	}
	if err != nil {
		return nil, nil, err
	}
	r, err := request(cmd, id, folders)
	if err != nil {
		return nil, nil, err
	}
	if r.Scratch == "" && !cmd.Bool("read-only") {
		r.Scratch = filepath.Join(work, "scratch")
		if !cmd.Bool("dry-run") {
			s.later(func(context.Context) error { return os.RemoveAll(work) })
			make := e.makeScratch
			if cmd.String("isolation") == "process" {
				make = folderScratch
			}
			if _, err := make(ctx, cmd, r.Scratch, layerdir.DefaultScratchSize); err != nil {
				return nil, nil, err
			}
		}
	}
	vm, err := e.runVM(ctx, cmd, s, id)
	if err != nil {
		return nil, nil, err
	}
	e.mountIn(cmd, &r, vm)
	m, err := layers.Mount(ctx, r)
	if err != nil {
		return nil, nil, e.advise(err, cmd.String("vm"), id)
	}
	if !cmd.Bool("dry-run") {
		s.later(func(ctx context.Context) error {
			// What the program left running in the background ends with it.
			err := endPrograms(ctx, r.VM, id)
			return errors.Join(err, m.Release(ctx, layers.UnmountOperationAll))
		})
	}
	return m, r.VM, nil
}

// layerFolders imports the tars among the layers.
func (e *env) layerFolders(ctx context.Context, cmd *cli.Command, s *session, work string) ([]string, error) {
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
		s.later(func(context.Context) error { return os.RemoveAll(work) })
		if _, err := e.convert(ctx, cmd, arg, dir, layerdir.VHD); err != nil {
			return nil, err
		}
		folders = append(folders, dir)
	}
	return folders, nil
}

// runVM takes up the VM that was asked for, or starts one.
func (e *env) runVM(ctx context.Context, cmd *cli.Command, s *session, id string) (*uvm.UtilityVM, error) {
	name := cmd.String("vm")
	if cmd.String("isolation") == "process" {
		name = hostVM
	}
	if name != "" || cmd.Bool("dry-run") {
		if name == "" {
			name = id
		}
		vm, err := e.open(ctx, cmd, name)
		if err == nil {
			s.later(func(context.Context) error { return vm.Close() })
		}
		return vm, err
	}
	dir, err := e.vmDir(cmd, id)
	if err != nil {
		return nil, err
	}
	o, err := e.vmOptions(cmd, dir)
	if err != nil {
		return nil, err
	}
	vm, err := strata.StartVM(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start a VM: %w", err)
	}
	s.later(func(ctx context.Context) error { return e.stop(ctx, vm, dir, cleanup/2) })
	return vm, nil
}

// folderScratch makes a scratch for this system itself: a folder that is written to.
func folderScratch(_ context.Context, _ *cli.Command, dir string, _ int64) (string, error) {
	return dir, os.MkdirAll(dir, 0o700)
}
