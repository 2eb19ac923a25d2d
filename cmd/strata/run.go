package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func runCommands(e *env) []*cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Sources: cli.EnvVars("STRATA_VM"), Usage: "use the running VM `NAME` (default: one of its own, stopped at the end)"},
		&cli.StringFlag{Name: "isolation", Value: "hypervisor", Usage: "hypervisor: in a VM; process: on this Linux system itself, as root or in a user namespace"},
		&cli.StringFlag{Name: "id", Aliases: []string{"name"}, Usage: "of the container (default: made up)"},
		&cli.StringFlag{Name: "scratch", TakesFile: true, Usage: "`DIR` with the writable disk (default: one of its own, removed at the end)"},
		&cli.StringFlag{Name: "scratch-size", Value: defaultScratchSize, Usage: "of the disk of its own, which grows with what is written, such as 512M"},
		uncheckedFlag(),
		stopSignalFlag(),
		&cli.StringFlag{Name: "spec", TakesFile: true, Usage: "`FILE` with the container's whole OCI document, instead of what the image says"},
		&cli.BoolFlag{Name: "rm", Hidden: true, Usage: "what run makes it removes anyway"},
	}
	flags = slices.Concat(flags, containerFlags(), startFlags("vm-memory", "vm-cpus"), imageFlags())
	one := 1
	return []*cli.Command{{
		Name: "run", Usage: "start a VM, mount an image or layers, run a program, and take all away again",
		ArgsUsage: "IMAGE [PROGRAM [ARG...]] | LAYER... -- PROGRAM [ARG...]",
		Description: sources + "It is imported into the store when it is not there; entrypoint, program, environment, folder and\n" +
			"user are those of the image where the command line does not say otherwise.\n" +
			"LAYERs are folders or tars, the top-most first. What run makes for itself it removes.\n" +
			"Flags come before the IMAGE or the first LAYER.\n\n" +
			"The container is as docker's is where no flag says otherwise: its rights, what it sees of /proc and /sys, its\n" +
			"seccomp profile (strata spec shows the document). Flags for its rights and limits are for --isolation=process so\n" +
			"far. The VM's own size is --vm-memory and --vm-cpus.\n\n" +
			"The exit code is that of the program, 128+n when signal n ended it; 127 when there is no such program, 126 when\n" +
			"it cannot be executed, 125 when it was not started for another reason. Ctrl-C, TERM, a terminal that goes away\n" +
			"and output that nobody reads any more end the program: the stop signal, and KILL after 10 seconds. QUIT is passed on.\n\n" +
			examples("strata run debian:12 cat /etc/os-release", "strata run rootfs.tar -- cat /etc/os-release",
				"strata run -it /layers/app /layers/debian -- bash",
				"strata run --isolation=process -m 512m --cpus 1.5 --cap-drop ALL debian:12 id",
				"strata run --vm default /layers/debian -- ls -l /"),
		Flags:        append(flags, processFlags()...),
		StopOnNthArg: &one,
		Action:       e.runAll,
	}}
}

// runInput is a checked command line of run.
type runInput struct {
	id          string
	roots       []string // an image, or layers
	command     []string
	spec        vmm.ProcessSpec
	options     strata.SpecOptions // of the container's document
	document    *specs.Spec        // the caller's, instead
	vm          strata.VMOptions
	scratchSize int64
	stop        syscall.Signal // that asks the program to end
}

// process reports whether a command mounts on this system itself.
func inProcess(cmd *cli.Command) bool { return cmd.String("isolation") == "process" }

// runInput reads and checks a command line, before anything is created.
func (e *env) runInput(cmd *cli.Command) (in runInput, err error) {
	if in.roots, in.command, err = e.runArgs(cmd); err != nil {
		return in, err
	}
	if in.id, err = runID(cmd); err != nil {
		return in, err
	}
	if in.spec, err = e.spec(cmd, in.command); err != nil {
		return in, err
	}
	if err = e.documentInput(cmd, &in); err != nil {
		return in, err
	}
	if in.vm, err = e.vmOptions(cmd, ""); err != nil {
		return in, err
	}
	if inProcess(cmd) {
		if runtime.GOOS != "linux" {
			return in, &exitError{exitNotRun, fmt.Errorf("programs run without a VM on Linux only "+
				"(a root for other programs: strata mount --vm host): %w", errors.ErrUnsupported)}
		}
	}
	if in.stop, err = stopSignal(cmd, ""); err != nil {
		return in, err
	}
	if in.scratchSize, err = parseSize(cmd.String("scratch-size")); err != nil {
		return in, usage(cmd, "--scratch-size: %w", err)
	}
	return in, nil
}

func (e *env) runAll(ctx context.Context, cmd *cli.Command) (err error) {
	in, err := e.runInput(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return notRun(e.prepare(ctx, cmd, nil, &in))
	}
	runs, err := e.runs(cmd)
	if err != nil {
		return notRun(err)
	}
	// What runs left in VMs that others started is taken away by the command that opens such a VM.
	e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.Own || r.VM == "" })
	r, err := runs.Begin(ctx, in.id)
	if errors.Is(err, strata.ErrRunID) {
		err = fmt.Errorf("%w; choose another --id", err)
	}
	if err != nil {
		return notRun(err)
	}
	defer func() {
		if uerr := r.End(ctx); uerr != nil {
			e.say("strata: tidying up: %v; to try again: strata recover", uerr)
			if err == nil {
				err = &exitError{code: exitFailure}
			}
		}
	}()
	if err := e.prepare(ctx, cmd, r, &in); err != nil {
		return notRun(err)
	}
	return e.runIn(ctx, cmd, r.VM(), in.spec, in.stop)
}

// notRun gives an error the exit code of a program that was not started, unless it has one.
func notRun(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || err == nil {
		return err
	}
	return &exitError{exitNotRun, err}
}

// runArgs tells the image or the layers of a command line from the program. Flags end before them. What follows an
// image is the program, with or without a "--" between them; layers end at a "--".
func (e *env) runArgs(cmd *cli.Command) (roots, program []string, err error) {
	args := cmd.Args().Slice()
	switch {
	case len(args) == 0:
		return nil, nil, usage(cmd, "give an image or at least one layer")
	case len(args) == 1 || e.dashes && allExist(args):
		roots, program = args, e.command
	case isImage(args[:1]):
		return args[:1], e.program(args[1:]), nil
	case e.dashes:
		roots, program = args, e.command // the error then names the layer that is not there
	default:
		roots = args
	}
	if len(program) == 0 && !isImage(roots) && !cmd.IsSet("spec") {
		err = usage(cmd, "give a program after --, such as: strata run %s -- /bin/sh", strings.Join(roots, " "))
	}
	return roots, program, err
}

// program is a program whose first words come before a "--", which then belongs to it.
func (e *env) program(first []string) []string {
	switch {
	case len(first) == 0:
		return e.command
	case e.dashes:
		return slices.Concat(first, []string{"--"}, e.command)
	}
	return first
}

func allExist(paths []string) bool {
	return !slices.ContainsFunc(paths, func(p string) bool { return !exists(p) })
}

// runID checks the flags of run that depend on each other, and gives the id of the container.
func runID(cmd *cli.Command) (id string, err error) {
	process := inProcess(cmd)
	if id = cmd.String("id"); id == "" {
		id = "run-" + strings.ToLower(rand.Text()[:8])
	}
	switch {
	case !process && cmd.String("isolation") != "hypervisor":
		err = usage(cmd, "--isolation %q: use hypervisor or process", cmd.String("isolation"))
	case process && cmd.String("vm") != "":
		err = usage(cmd, "--isolation=process and --vm exclude each other")
	case cmd.Bool("read-only") && cmd.IsSet("scratch"):
		err = usage(cmd, "--read-only and --scratch exclude each other")
	case cmd.IsSet("scratch-size") && (process || cmd.Bool("read-only") || cmd.IsSet("scratch")):
		err = usage(cmd, "--scratch-size is for the disk that run makes: "+
			"not with --scratch, --read-only or --isolation=process")
	case !validName.MatchString(id):
		err = usage(cmd, "container id %q: use 1 to 63 letters, digits, '_', '.' or '-', a letter or digit first", id)
	case id == hostVM && !process && cmd.String("vm") == "":
		err = usage(cmd, "container id %q: the VM of the run would have this name, "+
			"which is that of this system itself", id)
	}
	return id, err
}

// prepare creates everything that the program needs and mounts it. In a dry run, r is nil.
func (e *env) prepare(ctx context.Context, cmd *cli.Command, r *strata.Run, in *runInput) (err error) {
	var folders []string
	if isImage(in.roots) {
		use, err := e.useImage(ctx, cmd, in.roots[0], "run of "+in.id)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, use.lease.Release()) }()
		if err := e.describe(cmd, in, use.config); err != nil {
			return err
		}
		if in.stop, err = stopSignal(cmd, use.config.StopSignal); err != nil {
			return err
		}
		folders = use.folders
	} else {
		if err := e.describe(cmd, in, image.Config{}); err != nil {
			return err
		}
		if folders, err = e.layerFolders(ctx, cmd, r, in.roots); err != nil {
			return err
		}
	}
	in.spec.MakeDir = true // images name working directories that they do not have
	if err := gcs.CheckArguments(in.spec.Args, in.spec.Env); err != nil {
		return err
	}
	req, err := request(cmd, in.id, folders)
	if err != nil {
		return err
	}
	// A root that is read-only needs a scratch for the places of mounts that the image does not have.
	if req.Scratch == "" && (!cmd.Bool("read-only") || len(in.options.Mounts) > 0) {
		if req.Scratch, err = e.runScratch(ctx, cmd, r, in); err != nil {
			return err
		}
	}
	if err := checkLayers(cmd, folders); err != nil {
		return err
	}
	vm, err := e.runVM(ctx, cmd, r, in)
	if err != nil {
		return err
	}
	// While the program runs others may use the VM.
	defer func() { err = errors.Join(err, vm.Close()) }()
	req.VM = vm
	m, err := layers.Mount(ctx, req)
	if err != nil {
		return e.advise(err, vm.ID(), in.id)
	}
	in.spec.ContainerID, in.spec.Root = m.ID, m.Root
	return nil
}

// checkLayers finds folders that hold no layer before a VM is started for them. Those of Windows guests have no file
// of one name.
func checkLayers(cmd *cli.Command, folders []string) error {
	if cmd.String("guest") == string(vmm.Windows) {
		return nil
	}
	for _, dir := range folders {
		holds := func(f layerdir.Format) bool { return exists(filepath.Join(dir, f.FileName())) }
		if !holds(layerdir.EROFS) && !holds(layerdir.VHD) && !holds(layerdir.Tree) {
			return fmt.Errorf("layer %s: it holds no layer.erofs, layer.vhd or layer.dir; "+
				"to make a layer of a tar: strata import TAR DIR", printable(dir))
		}
	}
	return nil
}

// runScratch creates the scratch of a run that is given none.
func (e *env) runScratch(ctx context.Context, cmd *cli.Command, r *strata.Run, in *runInput) (dir string, err error) {
	if r == nil {
		runs, err := e.runs(cmd)
		if err != nil {
			return "", err
		}
		return filepath.Join(runs.Dir, "run", in.id, "scratch"), nil
	}
	dir = filepath.Join(r.Dir(), "scratch")
	if inProcess(cmd) { // a folder that is written to
		return dir, os.MkdirAll(dir, 0o700)
	}
	_, err = e.makeScratch(ctx, cmd, dir, in.scratchSize)
	return dir, err
}

// layerFolders imports the tars among the layers.
func (e *env) layerFolders(ctx context.Context, cmd *cli.Command, r *strata.Run, args []string) ([]string, error) {
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
		if r == nil {
			return nil, fmt.Errorf("layer %s: a dry run imports nothing; import it first: strata import %s DIR", arg, arg)
		}
		dir := filepath.Join(r.Dir(), fmt.Sprintf("layer%d", i))
		if _, err := e.convert(ctx, cmd, arg, dir); err != nil {
			return nil, err
		}
		folders = append(folders, dir)
	}
	return folders, nil
}

// runVM opens the VM that was asked for, or starts one. In a dry run, r is nil.
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
		if _, err := e.vmDir(cmd, name); err != nil {
			return nil, err
		}
		e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.VM == name && !r.Own })
		vm, err := r.OpenVM(ctx, name)
		return vm, e.advise(err, name, id)
	}
	done := e.status("starting a VM ...")
	vm, err := r.StartVM(ctx, in.vm)
	done()
	if errors.Is(err, strata.ErrRunID) {
		err = fmt.Errorf("%w; choose another --id, or to run in it: --vm %s", err, id)
	}
	return vm, err
}
