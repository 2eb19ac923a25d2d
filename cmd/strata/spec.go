package main

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/vmm"
)

func specCommands(e *env) []*cli.Command {
	one := 1
	return []*cli.Command{{
		Name: "spec", Usage: "print the OCI document of a container of an image",
		ArgsUsage: "IMAGE [PROGRAM [ARG...]]",
		Description: "The document is what strata run starts the container by. Changed or not, strata run --spec takes\n" +
			"it, as other runtimes do. " + sources + "It is imported into the store when it is not there.\n\n" +
			examples("strata spec debian:12", "strata spec --cap-drop ALL -m 512m debian:12 sh >config.json",
				"strata run --spec config.json debian:12"),
		Flags:        append(append(containerFlags(), processFlags()...), imageFlags()...),
		StopOnNthArg: &one,
		Action:       e.printSpec,
	}}
}

// printSpec implements the command spec.
func (e *env) printSpec(ctx context.Context, cmd *cli.Command) (err error) {
	args := cmd.Args().Slice()
	if len(args) == 0 {
		return usage(cmd, "give an image")
	}
	if !isImage(args[:1]) {
		return usage(cmd, "%s is no image", printable(args[0]))
	}
	o, err := e.specOptions(cmd)
	if err == nil {
		_, err = e.mountOptions(cmd, &o, "spec", "", image.Config{}) // the image's volumes are of a run
	}
	if err != nil {
		return err
	}
	if _, err := strata.ContainerSpec(image.Config{}, withProgram(o)); err != nil {
		return err
	}
	use, err := e.useImage(ctx, cmd, args[0], "spec of "+args[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, use.lease.Release()) }()
	o.Args, o.Terminal = e.program(args[1:]), cmd.Bool("tty")
	s, err := strata.ContainerSpec(use.config, o)
	if err != nil {
		return err
	}
	if o.SeccompUnconfined && len(cmd.StringSlice("security-opt")) == 0 {
		e.say("strata: the document has no seccomp profile: it is added on Linux hosts only")
	}
	return writeJSON(e.stdout, s, "  ")
}

// documentInput reads and checks the flags for the container's OCI spec.
func (e *env) documentInput(cmd *cli.Command, in *runInput) (err error) {
	if cmd.IsSet("device") && !inProcess(cmd) {
		return &exitError{exitNotRun, fmt.Errorf("--device: a device of this system: not supported in a VM, only with "+
			"--isolation=process: %w", errors.ErrUnsupported)}
	}
	if set := setFlags(cmd, onlyDocument); len(set) > 0 && cmd.String("guest") == string(vmm.Windows) {
		return &exitError{exitNotRun, fmt.Errorf("%s: not supported in a Windows VM: %w", set[0], errors.ErrUnsupported)}
	}
	if in.network, err = networkInput(cmd); err != nil {
		return err
	}
	if in.options, err = e.specOptions(cmd); err != nil {
		return notRun(err)
	}
	if _, err = e.mountOptions(cmd, &in.options, in.id, "", image.Config{}); err != nil {
		return notRun(err)
	}
	if !cmd.IsSet("spec") {
		// Check the flags before the image is imported.
		s, err := e.containerSpec(cmd, image.Config{}, withProgram(in.options))
		in.limits = limitsOf(s)
		return notRun(err)
	}
	also := append(setFlags(cmd, onlyDocument[:len(onlyDocument)-1]),
		setFlags(cmd, []string{"entrypoint", "env", "workdir", "user"})...)
	if in.network == nil { // else it is the machine's part of the container
		also = append(also, setFlags(cmd, []string{"network"})...)
	}
	if len(also) > 0 {
		return usage(cmd, "--spec and %s exclude each other: the document says it", also[0])
	}
	if len(in.command) > 0 {
		return usage(cmd, "--spec and a program exclude each other: the document says which")
	}
	if in.document, err = readSpec(cmd.String("spec")); err != nil {
		return notRun(err)
	}
	in.limits = limitsOf(in.document)
	if in.document.Process.Terminal != cmd.Bool("tty") {
		return usage(cmd, "--spec: process.terminal is %v, and --tty is %[2]v: set both or none",
			in.document.Process.Terminal, cmd.Bool("tty"))
	}
	return notRun(e.checkBinds(cmd, in))
}

// withProgram adds a placeholder program to options, so that they can be checked before the program is known.
func withProgram(o strata.SpecOptions) strata.SpecOptions {
	o.Args = []string{"sh"}
	return o
}

// describe fills in the process and the OCI spec of the container from the image and the command line, or from --spec.
func (e *env) describe(cmd *cli.Command, in *runInput, c image.Config) error {
	s, o := in.document, in.options
	if cmd.String("guest") == string(vmm.Windows) { // Windows containers have no OCI spec here
		return nil
	}
	if s == nil {
		entry := c.Entrypoint
		if o.Entrypoint != nil {
			entry, c.Cmd = o.Entrypoint, nil
		}
		if len(entry)+len(c.Cmd)+len(in.command) == 0 {
			return usage(cmd, "the image does not say what to run; give a program after --, such as: -- /bin/sh")
		}
		o.Args, o.Terminal = in.command, in.spec.Terminal
		o.Width, o.Height = uint(in.spec.Width), uint(in.spec.Height)
		if o.Hostname == "" {
			o.Hostname = in.id
		}
		if t := e.getenv("TERM"); t != "" && o.Terminal {
			o.Env = append([]string{"TERM=" + t}, o.Env...)
		}
		var err error
		if in.volumes, err = e.mountOptions(cmd, &o, in.id, in.own, c); err != nil {
			return err
		}
		if s, err = e.containerSpec(cmd, c, o); err != nil {
			return err
		}
	}
	p := s.Process
	in.spec.Args, in.spec.Env, in.spec.Dir, in.spec.Hostname = p.Args, p.Env, p.Cwd, s.Hostname
	in.spec.User = userName(p.User)
	in.spec.Spec = s
	return nil
}

// consoleSize sets the size of the terminal to that of the OCI spec, unless the user's terminal has one.
func (e *env) consoleSize(in *runInput) {
	if in.spec.Spec == nil || in.spec.Spec.Process == nil {
		return
	}
	size := in.spec.Spec.Process.ConsoleSize
	if _, own := terminal(e.stdin); !own && size != nil && size.Width > 0 && size.Height > 0 {
		in.spec.Width, in.spec.Height = uint16(size.Width), uint16(size.Height)
	}
}

// userName converts an OCI spec's user to that of vmm.ProcessSpec.
func userName(u specs.User) string {
	if u.Username != "" || u.UID == 0 && u.GID == 0 {
		return u.Username
	}
	return fmt.Sprintf("%d:%d", u.UID, u.GID)
}
