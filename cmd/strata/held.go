package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// held is the container that a run supervises. It is nil in a dry run: keepImage and keepLayers then do nothing.
type held struct {
	c        *strata.Container
	detached bool
	ready    func(strata.ContainerRecord) // called when the program runs
	trouble  error                        // error of the cleanup at the end of the run
}

// hold creates the container of a run, or reopens one that has ended.
func (e *env) hold(ctx context.Context, cmd *cli.Command, runs *strata.Runs, in *runInput) (*held, error) {
	cs := runs.Containers()
	h := &held{ready: func(strata.ContainerRecord) {}}
	d := e.detached
	var err error
	if d != nil && d.again {
		h.c, err = cs.Resume(ctx, in.id)
	} else {
		rec := strata.ContainerRecord{Name: in.id, Image: in.roots[0], Foreground: d == nil,
			AutoRemove: d == nil || cmd.Bool("rm"), OpenStdin: cmd.Bool("interactive"), StopSignal: int(in.stop)}
		rec.Process.Args, rec.Process.Terminal = in.command, cmd.Bool("tty")
		if rec.Network, rec.Ports, err = networkKind(cmd); err != nil {
			return nil, err
		}
		if d != nil {
			rec.Launch = d.launch
		}
		h.c, err = cs.Begin(ctx, rec)
	}
	if errors.Is(err, strata.ErrContainerName) {
		err = adviseName(err)
	}
	if err != nil || d == nil {
		return h, err
	}
	h.detached, h.ready = true, d.started
	if err := d.listening(ctx); err != nil {
		return nil, errors.Join(err, h.c.Finish(exitNotRun, err.Error()))
	}
	return h, nil
}

func (h *held) again() bool { return h != nil && h.c.Again() }

// folder returns the directory for what a run creates for the container: that of the container if it may be started
// again, else that of the run; "" in a dry run.
func (in *runInput) folder(r *strata.Run) string {
	switch {
	case r == nil:
		return ""
	case in.held != nil && in.held.detached:
		return in.held.c.Dir()
	}
	return r.Dir()
}

// keepImage records the container's image and stop signal.
func (h *held) keepImage(name string, use imageInUse, stop syscall.Signal) {
	if h != nil {
		h.c.Update(func(r *strata.ContainerRecord) { r.Image, r.Digest, r.StopSignal = name, use.digest, int(stop) })
	}
}

// keepLayers records the layers of the container.
func (h *held) keepLayers(all []layers.Layer) {
	if h == nil {
		return
	}
	h.c.Update(func(r *strata.ContainerRecord) {
		r.Layers = nil
		for _, l := range all {
			r.Layers = append(r.Layers, l.Folder)
		}
	})
}

// restore fills in the recorded settings of a container that is started again, and returns its layers.
func (h *held) restore(in *runInput) []string {
	r := h.c.Record()
	r.Process.Apply(&in.spec)
	in.stop = r.Signal()
	return slices.Clone(r.Layers)
}

// finish records the end of the run and returns the error to exit with.
func (h *held) finish(e *env, err error) error {
	code, words := 0, ""
	if err != nil {
		code, words = exitFailure, err.Error()
	}
	if ee, ok := errors.AsType[*exitError](err); ok {
		if code = ee.code; ee.err == nil {
			words = ""
		}
	}
	if h.trouble != nil && words == "" {
		words = "tidying up: " + h.trouble.Error()
	}
	if ferr := h.c.Finish(code, words); ferr != nil {
		e.say("strata: tidying up: %v; to try again: strata recover", ferr)
		if err == nil {
			return &exitError{code: exitFailure}
		}
	}
	return err
}

// heldRunner starts the program of a container, and connects it to the container's log and control socket.
type heldRunner struct {
	strata.Runner
	h  *held
	vm string
}

// Exec starts the program.
func (r heldRunner) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	c, run := r.h.c, spec
	if r.h.detached {
		run.Stdin, run.Stdout, run.Stderr = nil, c.Output("stdout", nil), nil
		if c.Record().OpenStdin {
			run.Stdin = c.Input()
		}
		if !spec.Terminal {
			run.Stderr = c.Output("stderr", nil)
		}
	} else {
		run.Stdout = c.Output("stdout", spec.Stdout)
		if spec.Stderr != nil {
			run.Stderr = c.Output("stderr", spec.Stderr)
		}
	}
	p, err := r.Runner.Exec(ctx, run)
	if err != nil {
		return nil, err
	}
	if err := c.Started(r.vm, p, spec, r.Runner); err != nil {
		return nil, errors.Join(err, p.Signal(context.WithoutCancel(ctx), int(syscall.SIGKILL)), p.Close())
	}
	r.h.ready(c.Record())
	return heldProcess{p, c}, nil
}

// heldProcess is the program of a container.
type heldProcess struct {
	vmm.Process
	c *strata.Container
}

// Wait waits until the program has ended.
func (p heldProcess) Wait(ctx context.Context) (int, error) {
	code, err := p.Process.Wait(ctx)
	p.c.Ended()
	if err == nil && p.OutOfMemory() {
		p.c.Update(func(r *strata.ContainerRecord) { r.OOMKilled = true })
	}
	return code, err
}

// OutOfMemory implements vmm.OutOfMemory.
func (p heldProcess) OutOfMemory() bool { return outOfMemory(p.Process) }

// outOfMemory reports whether a process that has ended was OOM-killed.
func outOfMemory(p vmm.Process) bool {
	o, ok := p.(vmm.OutOfMemory)
	return ok && o.OutOfMemory()
}

// layersOfContainers returns the layers of containers that may be started again.
func (e *env) layersOfContainers(cmd *cli.Command) (paths []string, err error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return nil, err
	}
	all, err := runs.Containers().List()
	for _, r := range all {
		paths = append(paths, r.Layers...)
	}
	return paths, err
}

// leaveOutput closes standard output and error, and leaves the working directory.
func leaveOutput() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return errors.Join(os.Chdir("/"), replace(null, 1), replace(null, 2))
}
