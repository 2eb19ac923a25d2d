package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func mountCommands(e *env) []*cli.Command {
	return []*cli.Command{
		{
			Name: "mount", Usage: "make a container's root in a VM", ArgsUsage: "ID IMAGE|LAYER...",
			Description: sources + "It is imported into the store when it is not there.\nLAYERs are folders, the top-most " +
				"first, the base last. Without --scratch the root is read-only.\n" +
				"Layers that are in the VM already are shared. Of an IMAGE its environment, user and working directory are\n" +
				"kept, for programs that strata exec runs.\n\n" +
				"--vm host mounts on this system itself: on Linux as root or in a user namespace, on Windows the root of\n" +
				"a process-isolated container.\n\n" +
				examples("strata mount --scratch /scratch/web web /layers/app /layers/debian",
					"strata mount --scratch /scratch/db db debian:12",
					"strata --dry-run mount --scratch /scratch/web web /layers/app /layers/debian"),
			Flags: append([]cli.Flag{
				vmFlag(),
				&cli.StringFlag{Name: "scratch", TakesFile: true, Usage: "`DIR` with the writable disk (strata scratch create)"},
				uncheckedFlag(),
				&cli.StringSliceFlag{Name: "cim", TakesFile: true,
					Usage: "instead of LAYERs, on Windows hosts: composite image `DIR\\NAME`; " +
						"repeated for what that image was merged from, top-most first"},
				&cli.StringFlag{Name: "cim-kind", Value: "folder",
					Usage: "where composite images are: folder, or DIR is a file or device"},
			}, imageFlags()...),
			Action: e.mount,
		},
		{
			Name: "unmount", Aliases: []string{"umount"}, Usage: "take a container's root away", ArgsUsage: "ID...",
			Description: "Everything is attempted; after a failure (a file is still open, say) the command can be\n" +
				"repeated and continues.\n\n" +
				examples("strata unmount web", "strata unmount --keep-layers web   # the VM keeps them for the next container"),
			Flags: []cli.Flag{
				vmFlag(),
				&cli.BoolFlag{Name: "keep-layers",
					Usage: "release the root and the scratch only; a later unmount releases the layers"},
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all containers of the VM"},
				&cli.BoolFlag{Name: "force", Aliases: []string{"f"},
					Usage: "end the programs that still run in the container first"},
			},
			Action: e.unmount,
		},
	}
}

func uncheckedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "allow-unchecked",
		Usage: "mount layers with a hash tree (+verity) also where nothing can check it"}
}

// mounted is the output of mount.
type mounted struct {
	ID      string   `json:"id"`
	VM      string   `json:"vm"`
	Root    string   `json:"root"` // in the guest
	Scratch string   `json:"scratch,omitempty"`
	Layers  []string `json:"layers"`
	Millis  int64    `json:"milliseconds"`
}

// request reads a container's layers and scratch from the command line.
func request(cmd *cli.Command, id string, folders []string) (layers.Request, error) {
	folders, err := absolute(cmd, "layer", folders...)
	if err != nil {
		return layers.Request{}, err
	}
	r := layers.Request{ID: id, AllowUnchecked: cmd.Bool("allow-unchecked")}
	for _, f := range folders {
		r.Layers = append(r.Layers, layers.Layer{Folder: f})
	}
	if s := cmd.String("scratch"); s != "" || cmd.IsSet("scratch") {
		dirs, err := absolute(cmd, "scratch", s)
		if err != nil {
			return r, err
		}
		r.Scratch = dirs[0]
	}
	return r, nil
}

func (e *env) mount(ctx context.Context, cmd *cli.Command) (err error) {
	args, cims := cmd.Args().Slice(), cmd.StringSlice("cim")
	switch {
	case len(args) == 0 || len(args) == 1 && len(cims) == 0:
		return usage(cmd, "give an id and an image, or at least one layer")
	case len(args) > 1 && len(cims) > 0:
		return usage(cmd, "give layers or --cim, not both")
	}
	if runtime.GOOS == "windows" {
		if cims, err = absolute(cmd, "cim", cims...); err != nil {
			return err
		}
	}
	var kept *layers.Image
	if len(cims) == 0 && isImage(args[1:]) && args[1] != "" {
		name := args[1]
		use, uerr := e.useImage(ctx, cmd, name, "mount of "+args[0])
		if uerr != nil {
			return uerr
		}
		defer func() { err = errors.Join(err, use.lease.Release()) }()
		args = append(args[:1], use.folders...)
		if kept, err = strata.KeepImage(name, use.digest, use.config); err != nil {
			return err
		}
	}
	r, err := request(cmd, args[0], args[1:])
	if err == nil && len(cims) > 0 {
		r.CIM, err = layers.ParseCIM(cmd.String("cim-kind"), cims)
	}
	if err != nil {
		return err
	}
	vm, err := e.open(ctx, cmd, cmd.String("vm"))
	if err != nil {
		return err
	}
	defer e.close(vm)
	r.VM, r.Image = vm, kept
	start := time.Now()
	m, err := layers.Mount(ctx, r)
	if err != nil {
		return e.advise(err, cmd.String("vm"), r.ID)
	}
	if cmd.Bool("dry-run") {
		return nil
	}
	out := mounted{ID: m.ID, VM: cmd.String("vm"), Root: m.Root, Scratch: r.Scratch,
		Millis: time.Since(start).Milliseconds()}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, l.Folder)
	}
	out.Layers = append(out.Layers, cims...)
	return e.print(cmd, out, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s at %s in %s\n", m.ID, count(len(out.Layers), "layer"), m.Root,
			time.Since(start).Round(100*time.Microsecond))
	})
}

// advise adds a remedy to errors for which there is one.
func (e *env) advise(err error, vm, id string) error {
	switch {
	case errors.Is(err, vmm.ErrBusy):
		return &busyError{vm, id, err}
	case errors.Is(err, uvm.ErrClaimed):
		return fmt.Errorf("%w; choose another id, or: strata unmount --vm %s %s", err, vm, id)
	case errors.Is(err, uvm.ErrGuestPathInUse):
		return fmt.Errorf("%w: what a container of this id left whose volume was lost stays as long as VM %s; "+
			"choose another id, or stop the VM", err, vm)
	case errors.Is(err, uvm.ErrUnknownClaim):
		return fmt.Errorf("%w; strata ls shows those there are", err)
	case errors.Is(err, vmm.ErrProtocol):
		return fmt.Errorf("%w; end the VM with: strata vm stop --force %s", err, vm)
	case errors.Is(err, layers.ErrLayerOrder):
		return fmt.Errorf("%w; give the top-most layer first and the base last", err)
	case errors.Is(err, layers.ErrUnchecked):
		return fmt.Errorf("%w (--format without +verity, --isolation=hypervisor); --allow-unchecked mounts it all the same",
			err)
	}
	return err
}

// busyError is the error that programs use a container, as a readable sentence. It wraps err.
type busyError struct {
	vm, id string
	err    error
}

// user matches a process that uses a file system in the error text of the guest, or of a driver on this system.
var user = regexp.MustCompile(`process (\d+) \(([^)]*)\)( in the container)?`)

func (b *busyError) Unwrap() error { return b.err }

func (b *busyError) Error() string {
	var own, others []string // by the numbers that ps shows in the container, and outside
	for _, m := range user.FindAllStringSubmatch(b.err.Error(), -1) {
		who := &others
		if m[3] != "" {
			who = &own
		}
		if p := m[1] + " (" + m[2] + ")"; !slices.Contains(*who, p) {
			*who = append(*who, p)
		}
	}
	var who []string
	if len(own) > 0 {
		who = append(who, "its process "+strings.Join(own, ", "))
	}
	if len(others) > 0 {
		who = append(who, "process "+strings.Join(others, ", "))
	}
	if len(who) == 0 {
		return fmt.Sprintf("container %q is in use: %v", b.id, b.err)
	}
	return fmt.Sprintf("container %q is in use by %s; to end what runs in it: strata unmount --vm %s --force %s",
		b.id, strings.Join(who, " and "), b.vm, b.id)
}

func (e *env) unmount(ctx context.Context, cmd *cli.Command) error {
	ids := cmd.Args().Slice()
	if (len(ids) == 0) != cmd.Bool("all") {
		return usage(cmd, "give the ids of containers, or --all")
	}
	vm, err := e.open(ctx, cmd, cmd.String("vm"))
	if err != nil {
		return err
	}
	defer e.close(vm)
	if cmd.Bool("all") {
		for _, c := range vm.Claims() {
			ids = append(ids, c.ID())
		}
	}
	type result struct {
		ID   string `json:"id"`
		Rest int    `json:"held"` // resources it still holds
	}
	results := []result{}
	var errs []error
	for _, id := range ids {
		m, err := layers.Open(vm, id)
		if err == nil && cmd.Bool("force") && !cmd.Bool("dry-run") {
			err = m.EndPrograms(ctx)
		}
		if err == nil && cmd.Bool("keep-layers") {
			err = m.ReleaseScratch(ctx)
		} else if err == nil {
			err = m.Release(ctx)
		}
		if err != nil {
			errs = append(errs, e.advise(err, cmd.String("vm"), id))
			continue
		}
		results = append(results, result{ID: id, Rest: m.Held()})
	}
	if !cmd.Bool("dry-run") {
		errs = append(errs, e.print(cmd, results, func(w io.Writer) {
			for _, r := range results {
				if r.Rest == 0 {
					fmt.Fprintf(w, "%s: unmounted\n", r.ID)
				} else {
					fmt.Fprintf(w, "%s: unmounted in part, holds %d\n", r.ID, r.Rest)
				}
			}
		}))
	}
	return errors.Join(errs...)
}
