package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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

// runFlags are the flags of run.
func runFlags() []cli.Flag {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Sources: cli.EnvVars("STRATA_VM"),
			Usage: "use the running VM `NAME` (default: one of its own, stopped at the end)"},
		&cli.StringFlag{Name: "isolation", Value: "hypervisor",
			Usage: "hypervisor: in a VM; process: on this Linux system itself, as root or in a user namespace"},
		&cli.StringFlag{Name: "id", Aliases: []string{"name"}, Usage: "of the container (default: made up)"},
		&cli.StringFlag{Name: "scratch", TakesFile: true,
			Usage: "`DIR` with the writable disk (default: one of its own, removed at the end)"},
		&cli.StringFlag{Name: "scratch-size", Value: defaultScratchSize,
			Usage: "of the disk of its own, which grows with what is written, such as 512M"},
		uncheckedFlag(),
		stopSignalFlag(),
		&cli.StringFlag{Name: "spec", TakesFile: true,
			Usage: "`FILE` with the container's whole OCI document, instead of what the image says"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"},
			Usage: "leave the container to itself once its program runs, and print its id"},
		&cli.BoolFlag{Name: "rm", Usage: "remove the container when it ends; without --detach it is removed anyway"},
	}
	return slices.Concat(flags, superviseFlags(), containerFlags(), startFlags("vm-memory", "vm-cpus"), imageFlags(),
		processFlags())
}

func runCommands(e *env) []*cli.Command {
	one := 1
	return []*cli.Command{{
		Name: "run", Usage: "start a VM, mount an image or layers, run a program, and take all away again",
		ArgsUsage: "IMAGE [PROGRAM [ARG...]] | LAYER... -- PROGRAM [ARG...]",
		Description: sources +
			"It is imported into the store when it is not there; entrypoint, program, environment, folder and\n" +
			"user are those of the image where the command line does not say otherwise.\n" +
			"LAYERs are folders or tars, the top-most first. What run makes for itself it removes; with --detach\n" +
			"strata rm does. Flags come before the IMAGE or the first LAYER.\n\n" +
			"The container is as docker's is where no flag says otherwise: its rights, what it sees of /proc and /sys, its\n" +
			"seccomp profile (strata spec shows the document). A VM of the run has room for the container's limits,\n" +
			"or the size that --vm-memory and --vm-cpus say.\n\n" +
			"The exit code is that of the program, 128+n when signal n ended it; 127 when there is no such program, 126 when\n" +
			"it cannot be executed, 125 when it was not started for another reason. Ctrl-C, TERM, a terminal that goes away\n" +
			"and output that nobody reads any more end the program: the stop signal, and KILL after 10 seconds. QUIT,\n" +
			"USR1, USR2 and ALRM are passed on.\n\n" +
			examples("strata run debian:12 cat /etc/os-release", "strata run rootfs.tar -- cat /etc/os-release",
				"strata run -it /layers/app /layers/debian -- bash",
				"strata run --isolation=process -m 512m --cpus 1.5 --cap-drop ALL debian:12 id",
				"strata run -d --name www -p 8080:80 nginx",
				"strata run -v ./src:/src -v cache:/root/.cache golang:1.26 make -C /src",
				"strata run --vm default /layers/debian -- ls -l /"),
		Flags:        runFlags(),
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
	options     strata.SpecOptions // for the container's OCI spec
	document    *specs.Spec        // the OCI spec of --spec, used instead of options
	vm          strata.VMOptions
	limits      limits // of the container
	scratchSize int64
	stop        syscall.Signal           // the stop signal
	network     *uvm.Network             // of the container; nil: none, or that of this system
	held        *held                    // the container's record and what belongs to it; nil in a dry run
	volumes     *strata.ContainerVolumes // of a new container
	placed      placedVolumes
	own         string // the directory for what belongs to the container, see folder
}

// inProcess reports whether a command runs the container without a VM.
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
	if err = sizeVM(cmd, &in); err != nil {
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
	if cmd.Bool("supervise") {
		return e.supervise(ctx, cmd)
	}
	in, err := e.runInput(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return notRun(e.prepare(ctx, cmd, nil, &in))
	}
	if cmd.Bool("detach") {
		return e.detach(ctx, cmd, &in)
	}
	return e.runHere(ctx, cmd, &in)
}

// runHere runs a container with this process as its supervisor.
func (e *env) runHere(ctx context.Context, cmd *cli.Command, in *runInput) (err error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return notRun(err)
	}
	// Killed runs in VMs that others have started are cleaned up when such a VM is opened.
	e.sweepBefore(ctx, cmd, func(r strata.RunRecord) bool { return r.Own || r.VM == "" })
	e.buryBefore(ctx, runs.Containers())
	if in.held, err = e.hold(ctx, cmd, runs, in); err != nil {
		return notRun(err)
	}
	defer func() { err = in.held.finish(e, err) }()
	r, err := runs.Begin(ctx, in.id)
	if errors.Is(err, strata.ErrRunID) {
		err = fmt.Errorf("%w; choose another --id", err)
	}
	if err != nil {
		return notRun(err)
	}
	defer func() {
		in.held.c.Ended()
		if uerr := r.End(ctx); uerr != nil {
			e.say("strata: tidying up: %v; to try again: strata recover", uerr)
			in.held.trouble = uerr
			if err == nil && e.detached == nil {
				err = &exitError{code: exitFailure}
			}
		}
	}()
	if err := e.prepare(ctx, cmd, r, in); err != nil {
		return notRun(err)
	}
	return e.runIn(ctx, cmd, r.VM(), in.spec, in.stop, func(m strata.Runner) strata.Runner {
		return heldRunner{in.placed.runner(m), in.held, r.VM()}
	})
}

// notRun gives an error the exit code 125, program not started, unless it has an exit code.
func notRun(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || err == nil {
		return err
	}
	return &exitError{exitNotRun, err}
}

// runArgs splits the arguments into the image or layers and the program. The program follows an image directly or after
// "--"; layers must end with "--".
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
		roots, program = args, e.command // a missing layer is reported later, by name
	default:
		roots = args
	}
	if len(program) == 0 && !isImage(roots) && !cmd.IsSet("spec") {
		err = usage(cmd, "give a program after --, such as: strata run %s -- /bin/sh", strings.Join(roots, " "))
	}
	return roots, program, err
}

// program returns the program with its arguments: first, and what follows a "--", which then is an argument itself.
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

// runID checks the flags of run that depend on each other, and returns the id of the container.
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

// prepare creates and mounts everything that the program needs. In a dry run, r is nil.
func (e *env) prepare(ctx context.Context, cmd *cli.Command, r *strata.Run, in *runInput) (err error) {
	in.own = in.folder(r)
	if err := portsFree(ctx, cmd, in.network); err != nil {
		return err
	}
	var folders []string
	if in.held.again() {
		folders = in.held.restore(in)
	} else if isImage(in.roots) {
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
		in.held.keepImage(in.roots[0], use, in.stop)
	} else {
		if err := e.describe(cmd, in, image.Config{}); err != nil {
			return err
		}
		if folders, err = e.layerFolders(ctx, cmd, in.folder(r), in.roots); err != nil {
			return err
		}
	}
	e.consoleSize(in)
	in.spec.First = true
	in.spec.MakeDir = true // the image may not contain its working directory
	if err := gcs.CheckArguments(in.spec.Args, in.spec.Env); err != nil {
		return err
	}
	req, err := request(cmd, in.id, folders)
	if err != nil {
		return err
	}
	req.Network = in.network
	in.held.keepLayers(req.Layers)
	if err := in.checkLayers(ctx, cmd, folders); err != nil {
		return err
	}
	// A read-only root needs a scratch too: mount points that the image lacks are created in it.
	if req.Scratch == "" && (!cmd.Bool("read-only") || cmd.String("guest") == string(vmm.Linux)) {
		if req.Scratch, err = e.runScratch(ctx, cmd, r, in); err != nil {
			return err
		}
	}
	if r != nil && runtime.GOOS == "linux" {
		if err := in.findPrograms(cmd); err != nil {
			return err
		}
	}
	if err := in.makeVolumes(ctx, r, &req); err != nil {
		return err
	}
	in.vm.NoShares = len(req.Volumes) == 0
	vm, err := e.runVM(ctx, cmd, r, in)
	if err != nil {
		return err
	}
	// Other commands may use the VM while the program runs.
	defer func() { err = errors.Join(err, vm.Close()) }()
	req.VM = vm
	m, err := layers.Mount(ctx, req)
	if err != nil {
		return e.advise(err, vm.ID(), in.id)
	}
	in.spec.ContainerID, in.spec.Root = m.ID, m.Root
	return in.fillVolumes(ctx, vm, m, req.Volumes)
}

// checkLayers returns an error for a directory without a layer, or a mount whose destination the image does not allow,
// before a VM is started. It does not check layers of Windows guests, which have no fixed file name.
func (in *runInput) checkLayers(ctx context.Context, cmd *cli.Command, folders []string) error {
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
	if in.held.again() || cmd.IsSet("scratch") { // a program has changed the files of the image
		return nil
	}
	return strata.CheckPlaces(ctx, in.spec.Spec, folders)
}
