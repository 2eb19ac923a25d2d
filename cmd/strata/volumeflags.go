package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// volumeFlags returns the flags for volumes and mounts of a container.
func volumeFlags() []cli.Flag {
	// Not comma-separated: a path may contain a comma.
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Local: true,
			Usage: "`SOURCE:TARGET[:ro]`: a folder or file of this host (./data:/data), or a volume by its name (data:/data), " +
				"in the container (repeat)"},
		&cli.StringSliceFlag{Name: "mount",
			Usage: "`KEY=VALUE,...` as docker has it: type=bind, volume or tmpfs, source, target, readonly (repeat)"},
		&cli.StringSliceFlag{Name: "tmpfs",
			Usage: "`DIR[:OPTIONS]`: a file system in memory, such as /run:size=64m,mode=755"},
	}
}

// mountFlags reads volumeFlags.
func mountFlags(cmd *cli.Command) (out []strata.ContainerMount, err error) {
	for _, flag := range []struct {
		name  string
		parse func(string) (strata.ContainerMount, error)
	}{{"volume", strata.ParseVolume}, {"mount", strata.ParseMount}, {"tmpfs", strata.ParseTmpfs}} {
		for _, value := range cmd.StringSlice(flag.name) {
			m, err := flag.parse(value)
			if errors.Is(err, strata.ErrMount) {
				return nil, usage(cmd, "--%s: %w", flag.name, err)
			}
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		}
	}
	return out, nil
}

// mountOptions adds the mounts of the flags and the volumes of the image to the options of a container's OCI spec.
// folder is the directory for what belongs to the container.
func (e *env) mountOptions(
	cmd *cli.Command, o *strata.SpecOptions, id, folder string, c image.Config,
) (*strata.ContainerVolumes, error) {
	asked, err := mountFlags(cmd)
	if err != nil {
		return nil, err
	}
	runs, err := e.runs(cmd)
	if err != nil {
		return nil, err
	}
	v, err := runs.ContainerVolumes(id, folder, asked, c.Volumes)
	if errors.Is(err, strata.ErrMount) {
		return nil, usage(cmd, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	o.Mounts = v.SpecMounts()
	return v, nil
}

// checkBinds checks the bind mounts of --spec as those of the flags.
func (e *env) checkBinds(cmd *cli.Command, in *runInput) error {
	runs, err := e.runs(cmd)
	if err != nil {
		return err
	}
	var binds []strata.ContainerMount
	for _, m := range in.document.Mounts {
		if ocispec.IsBind(m) {
			binds = append(binds, strata.ContainerMount{Type: "bind", Source: m.Source, Target: m.Destination})
		}
	}
	if _, err := runs.ContainerVolumes(in.id, "", binds, nil); err != nil {
		return fmt.Errorf("--spec %s: %w", printable(cmd.String("spec")), err)
	}
	return nil
}

// makeVolumes creates the volumes of a container, and adds the bind mounts of its OCI spec to the request.
func (in *runInput) makeVolumes(ctx context.Context, r *strata.Run, req *layers.Request) error {
	req.Volumes = strata.BindVolumes(in.spec.Spec)
	if r == nil { // a dry run creates nothing
		req.Volumes = slices.DeleteFunc(req.Volumes, func(v layers.Volume) bool { return !exists(v.Path) })
	}
	if r == nil || in.volumes == nil || in.spec.Spec == nil {
		return nil
	}
	return in.volumes.Make(ctx)
}

// fillVolumes fills the new volumes of a mounted container from its image.
func (in *runInput) fillVolumes(ctx context.Context, vm *uvm.UtilityVM, m *layers.Mounted,
	asked []layers.Volume) error {
	in.placed = placedVolumes{m, asked}
	if in.volumes == nil || in.spec.Spec == nil {
		return nil
	}
	return in.volumes.Fill(ctx, vm, m)
}

// placedVolumes are the bind mounts of a container from this host.
type placedVolumes struct {
	m     *layers.Mounted
	asked []layers.Volume
}

// runner returns a runner that replaces host paths in OCI specs by the guest's, and whose processes fail if the server
// of a volume fails: a program that uses the volume would block for ever.
func (p placedVolumes) runner(r strata.Runner) strata.Runner {
	if len(p.asked) == 0 {
		return r
	}
	return volumeRunner{r, p}
}

type volumeRunner struct {
	strata.Runner
	placedVolumes
}

// Exec starts a program.
func (r volumeRunner) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	spec.Spec = strata.PlaceVolumes(spec.Spec, r.asked, r.m.VolumePaths)
	p, err := r.Runner.Exec(ctx, spec)
	if err != nil {
		return nil, err
	}
	return volumeProcess{p, r}, nil
}

// ContainerStats implements vmm.ContainerStatist.
func (r volumeRunner) ContainerStats(ctx context.Context, id string) (vmm.ContainerStats, error) {
	s, ok := r.Runner.(vmm.ContainerStatist)
	if !ok {
		return vmm.ContainerStats{}, errors.ErrUnsupported
	}
	return s.ContainerStats(ctx, id)
}

// PauseContainer implements vmm.ContainerController.
func (r volumeRunner) PauseContainer(ctx context.Context, id string) error {
	c, err := r.controller()
	if err != nil {
		return err
	}
	return c.PauseContainer(ctx, id)
}

// ResumeContainer implements vmm.ContainerController.
func (r volumeRunner) ResumeContainer(ctx context.Context, id string) error {
	c, err := r.controller()
	if err != nil {
		return err
	}
	return c.ResumeContainer(ctx, id)
}

// UpdateContainer implements vmm.ContainerController.
func (r volumeRunner) UpdateContainer(ctx context.Context, id string, limits specs.LinuxResources) error {
	c, err := r.controller()
	if err != nil {
		return err
	}
	return c.UpdateContainer(ctx, id, limits)
}

func (r volumeRunner) controller() (vmm.ContainerController, error) {
	c, ok := r.Runner.(vmm.ContainerController)
	if !ok {
		return nil, fmt.Errorf("pausing and updating containers: %w", errors.ErrUnsupported)
	}
	return c, nil
}

type volumeProcess struct {
	vmm.Process
	r volumeRunner
}

// OutOfMemory implements vmm.OutOfMemory.
func (p volumeProcess) OutOfMemory() bool { return outOfMemory(p.Process) }

// Wait waits until the program has ended, or fails if a volume's server does.
func (p volumeProcess) Wait(ctx context.Context) (int, error) {
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lost := make(chan error, 1)
	go func() {
		err := p.r.m.WatchVolumes(watch, p.r.Runner)
		if watch.Err() == nil {
			lost <- err
			cancel(err)
		}
	}()
	code, err := p.Process.Wait(watch)
	select {
	case died := <-lost:
		return 0, died
	default:
		return code, err
	}
}
