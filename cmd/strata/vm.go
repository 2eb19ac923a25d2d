package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func vmCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "vm", Usage: "start, list, inspect and stop utility VMs",
		Commands: []*cli.Command{
			{
				Name: "start", Usage: "start a utility VM", ArgsUsage: "[NAME]",
				Description: "The VM boots the newest kernel installed here and runs on after this command.\n\n" +
					examples("strata vm start", "strata vm start --memory 512M --cpus 4 big",
						`strata vm start --guest windows --uvm-layer C:\layers\nanoserver win   # on a Windows host`),
				Flags:  startFlags("memory", "cpus"),
				Action: e.vmStart,
			},
			{
				Name: "ls", Usage: "list the VMs", Aliases: []string{"list"},
				Description: examples("strata vm ls", "strata --json vm ls"),
				Action:      e.vmList,
			},
			{
				Name: "inspect", Usage: "show a VM with its devices, mounts and containers", ArgsUsage: "[NAME]",
				Description: examples("strata vm inspect", "strata --json vm inspect big"),
				Action:      e.vmInspect,
			},
			{
				Name: "stop", Usage: "unmount everything and power a VM off", ArgsUsage: "[NAME]",
				Description: examples("strata vm stop", "strata vm stop --force big"),
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "power it off the hard way after this time"},
					&cli.BoolFlag{Name: "force", Aliases: []string{"f"},
						Usage: "do not unmount and do not ask the guest: what containers wrote last may be lost"},
				},
				Action: e.vmStop,
			},
			{
				Name: "template", Usage: "make the template of a kind of VM now",
				Description: "With --template VMs of the kind are loaded from it; without one the first boots, and\n" +
					"the template is made in the background. strata store gc --templates removes templates.\n\n" +
					examples("strata vm template", "strata vm template --memory 512M --cpus 4"),
				Flags:  templateFlags(),
				Action: e.vmTemplate,
			},
		},
	}}
}

// leastMemoryMiB is the minimum for any guest. strata.StartVM checks what the actual guest needs.
const leastMemoryMiB = 96

// windowsMemoryMiB is the default for Windows guests, which do not boot with that of Linux guests.
const windowsMemoryMiB = 1024

// startFlags returns the flags of commands that start VMs. memory and cpus are the names of the flags for its size.
func startFlags(memory, cpus string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: memory, Value: "256M", Usage: "of the guest; 1G for a Windows guest where it is not given"},
		&cli.IntFlag{Name: cpus, HideDefault: true, Usage: "of the guest (default: those of the host, at most 2)"},
		&cli.StringFlag{Name: "accel", Value: "auto", Usage: "auto, kvm or tcg (software emulation)"},
		&cli.StringFlag{Name: "transport", Value: "auto", Usage: "to a guest under QEMU: auto, vsock or serial"},
		&cli.BoolFlag{Name: "template", Sources: cli.EnvVars("STRATA_TEMPLATE"),
			Usage: "under QEMU: load a saved VM of the same kind instead of booting one; the first of a kind boots"},
		&cli.BoolFlag{Name: "no-template", Usage: "boot, also where STRATA_TEMPLATE=1 says otherwise"},
		&cli.StringFlag{Name: "kernel", TakesFile: true, Usage: "`FILE` to boot (default: the newest in /boot)"},
		&cli.StringFlag{Name: "guest-init", TakesFile: true, Sources: cli.EnvVars("STRATA_INIT"),
			Usage: "a `BINARY` with the guest's agent (default: strata-init where it is found, else this one)"},
		&cli.StringFlag{Name: "boot-files", TakesFile: true, Sources: cli.EnvVars("STRATA_BOOT_FILES"),
			Usage: "Windows hosts: `DIR` with kernel and initrd.img of a Linux guest (default: where Windows keeps them)"},
		&cli.StringFlag{Name: "guest", Value: string(vmm.Linux), Usage: "linux, or, on Windows hosts, windows"},
		&cli.StringSliceFlag{Name: "uvm-layer", TakesFile: true,
			Usage: "layer folder `DIR` of the image that a Windows guest boots; once for each, the top-most first"},
	}
}

func (e *env) vmOptions(cmd *cli.Command, dir string) (strata.VMOptions, error) {
	memory, cpus := "memory", "cpus"
	if cmd.Name == "run" { // its --memory and --cpus are the container's
		memory, cpus = "vm-memory", "vm-cpus"
	}
	o := strata.VMOptions{Dir: dir, CPUs: cmd.Int(cpus), Accel: cmd.String("accel"), Transport: cmd.String("transport"),
		Template: cmd.Bool("template") && !cmd.Bool("no-template"),
		OS:       vmm.OS(cmd.String("guest")), RollbackTimeout: e.grace, Logger: e.logger(cmd)}
	bytes, err := parseSize(cmd.String(memory))
	if err != nil {
		return o, usage(cmd, "--%s: %w", memory, err)
	}
	o.MemoryMiB = int(bytes >> 20)
	if o.OS == vmm.Windows && !cmd.IsSet(memory) {
		o.MemoryMiB = windowsMemoryMiB
	}
	state, err := e.stateDir(cmd)
	if err != nil {
		return o, err
	}
	if dir := cmd.String("boot-files"); dir != "" {
		dirs, err := absolute(cmd, "--boot-files", dir)
		if err != nil {
			return o, err
		}
		o.BootFiles = dirs[0]
	}
	if o.UVMLayers, err = absolute(cmd, "--uvm-layer", cmd.StringSlice("uvm-layer")...); err != nil {
		return o, err
	}
	o.Boot = strata.BootOptions{
		Kernel: cmd.String("kernel"), InitPath: cmd.String("guest-init"), Logger: o.Logger,
		CacheDir: filepath.Join(state, "cache", "boot"),
	}
	for _, f := range []string{"kernel", "guest-init"} {
		if path := cmd.String(f); path != "" {
			if err := regularFile(path); err != nil {
				return o, fmt.Errorf("--%s: %w", f, err)
			}
		}
	}
	switch {
	case o.MemoryMiB < leastMemoryMiB:
		return o, usage(cmd, "--%s %s: %w, which takes %dM at least", memory, cmd.String(memory), strata.ErrMemory,
			leastMemoryMiB)
	case o.CPUs < 0:
		return o, usage(cmd, "--%s %d: give 1 or more", cpus, o.CPUs)
	case o.OS != vmm.Linux && o.OS != vmm.Windows:
		return o, usage(cmd, "--guest %q: use linux or windows", o.OS)
	case (o.OS == vmm.Windows) != (len(o.UVMLayers) > 0):
		return o, usage(cmd, "--guest windows and --uvm-layer need each other")
	case o.Accel != "auto" && o.Accel != "kvm" && o.Accel != "tcg":
		return o, usage(cmd, "--accel %q: use auto, kvm or tcg", o.Accel)
	case o.Transport != "auto" && o.Transport != "vsock" && o.Transport != "serial":
		return o, usage(cmd, "--transport %q: use auto, vsock or serial", o.Transport)
	}
	return o, nil
}

// regularFile returns an error unless path is a file.
func regularFile(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no such file", path)
	}
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	return err
}

// vmArg returns the VM named by a command's only argument.
func (e *env) vmArg(cmd *cli.Command) (name, dir string, err error) {
	if cmd.Args().Len() > 1 {
		return "", "", usage(cmd, "give one VM at most")
	}
	if name = cmd.Args().First(); name == "" {
		name = defaultVM
		if v := e.getenv("STRATA_VM"); v != "" {
			name = v
		}
	}
	dir, err = e.vmDir(cmd, name)
	return name, dir, err
}

// vmView is the output of the vm commands for a VM.
type vmView struct {
	Name string `json:"name"`
	strata.VMInfo
	Containers int `json:"containers"`
}

func (e *env) vmStart(ctx context.Context, cmd *cli.Command) error {
	name, dir, err := e.vmArg(cmd)
	if err != nil {
		return err
	}
	o, err := e.vmOptions(cmd, dir)
	if err != nil {
		return err
	}
	if name == hostVM {
		return usage(cmd, "%q is this system itself: it runs already", name)
	}
	if cmd.Bool("dry-run") {
		if info, err := strata.InspectVM(ctx, dir); err == nil && info.Running {
			return fmt.Errorf("start VM %q: %w", name, strata.ErrRunning)
		}
		return e.would(cmd, "start VM %s with %d MiB", name, o.MemoryMiB)
	}
	start := time.Now()
	behind := e.templateBehind(cmd, &o)
	done := e.status("starting VM %s ...", name)
	vm, err := strata.StartVM(ctx, o)
	done()
	if err != nil {
		return fmt.Errorf("start VM %q: %w", name, err)
	}
	behind()
	if err := vm.Close(); err != nil {
		return fmt.Errorf("start VM %q: %w", name, err)
	}
	info, err := strata.InspectVM(ctx, dir)
	if err != nil {
		return err
	}
	return e.print(cmd, vmView{Name: name, VMInfo: info}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: ready in %s (%s%s)\n", name, time.Since(start).Round(time.Millisecond), info.Accel,
			pid(info.PID, ", pid %d"))
	})
}

// vmNames lists the VMs that have a state directory.
func (e *env) vmNames(cmd *cli.Command) ([]string, error) {
	state, err := e.stateDir(cmd)
	if err != nil {
		return nil, err
	}
	return vmNamesIn(state)
}

func vmNamesIn(state string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(state, "vms"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, d := range entries {
		if d.IsDir() && validVM.MatchString(d.Name()) {
			names = append(names, d.Name())
		}
	}
	return names, err
}

func (e *env) vmList(ctx context.Context, cmd *cli.Command) error {
	names, err := e.vmNames(cmd)
	if err != nil {
		return err
	}
	views := []vmView{}
	var errs []error
	for _, name := range names {
		v, _, err := e.view(ctx, cmd, name)
		if errors.Is(err, strata.ErrNoVM) {
			continue // it has ended meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		views = append(views, v)
	}
	err = e.print(cmd, views, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tSTATE\tPID\tACCEL\tMEMORY\tCPUS\tCONTAINERS")
		for _, v := range views {
			row(w, "%s\t%s\t%d\t%s\t%d MiB\t%d\t%d\n", v.Name, running(v.VMInfo), v.PID, v.Accel, v.Memory, v.CPUs, v.Containers)
		}
	})
	return errors.Join(append(errs, err)...)
}

// pid formats the PID of a VM's process, or returns "" if it is unknown, as on Windows.
func pid(n int, format string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(format, n)
}

// running returns the state of a VM as a word.
func running(v strata.VMInfo) string {
	switch {
	case !v.Running:
		return "stopped"
	case v.Paused != "":
		return "paused"
	}
	return "running"
}

func (e *env) view(ctx context.Context, cmd *cli.Command, name string) (vmView, uvm.Status, error) {
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return vmView{}, uvm.Status{}, err
	}
	info, err := strata.InspectVM(ctx, dir)
	if name == hostVM && errors.Is(err, strata.ErrNoVM) {
		// hostVM exists without a state directory too; recover removes an empty one.
		return vmView{Name: name, VMInfo: strata.VMInfo{Dir: dir, OS: vmm.OS(runtime.GOOS), Running: true, Idle: true}},
			uvm.Status{}, nil
	}
	if err != nil {
		return vmView{}, uvm.Status{}, e.explain(name, err)
	}
	status := uvm.Status{}
	if info.Running {
		if status, err = uvm.ReadStatus(dir); err != nil {
			return vmView{}, status, err
		}
	}
	return vmView{Name: name, VMInfo: info, Containers: len(status.Claims)}, status, nil
}

func (e *env) vmInspect(ctx context.Context, cmd *cli.Command) error {
	name, _, err := e.vmArg(cmd)
	if err != nil {
		return err
	}
	v, status, err := e.view(ctx, cmd, name)
	if err != nil {
		return err
	}
	all := struct {
		vmView
		Ledger uvm.Status `json:"ledger"`
	}{v, status}
	return e.print(cmd, all, func(w io.Writer) {
		row(w, "name\t%s\nstate\t%s\ndirectory\t%s\n", v.Name, running(v.VMInfo), v.Dir)
		if v.Paused != "" {
			row(w, "paused\t%s\n", v.Paused)
		}
		if !v.Running {
			return
		}
		if v.PID != 0 {
			row(w, "process\t%d\n", v.PID)
		}
		row(w, "accelerator\t%s\nmemory\t%d MiB\nCPUs\t%d\n", v.Accel, v.Memory, v.CPUs)
		if v.Transport != "" {
			row(w, "transport\t%s\n", v.Transport)
		}
		if v.Template != "" {
			row(w, "template\t%s\n", v.Template)
		}
		if v.Kernel != "" {
			row(w, "kernel\t%s\n", v.Kernel)
		}
		for _, r := range status.Resources {
			note := count(r.Users, "user")
			if r.Retained {
				note = "retained"
			}
			row(w, "%s\t%s (%s)\n", r.State, half(r.What), note)
		}
		for _, c := range status.Claims {
			row(w, "container\t%s (%s, holds %d)\n", c.ID, c.Phase, len(c.Leases))
		}
	})
}

// half formats one half of a resource's change.
func half(c vmm.Change) string {
	if c.Device != nil {
		return c.Device.String()
	}
	if c.Mount != nil {
		return c.Mount.String()
	}
	return ""
}
