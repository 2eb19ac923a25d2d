package strata

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/plaintext"
	"github.com/stratavm/strata/internal/treecopy"
	"github.com/stratavm/strata/internal/volume"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// What a container has besides its image.
type (
	// ContainerMount is a mount that a user asks for.
	ContainerMount = volume.Mount
	// VolumeStore are volumes with a name.
	VolumeStore = volume.Store
	// VolumeInfo is what is known of a volume.
	VolumeInfo = volume.Info
)

// Errors about mounts and volumes.
var (
	// ErrMount is matched by errors about a mount that makes no sense.
	ErrMount = volume.ErrInvalid
	// ErrNoVolume says that there is no volume of that name.
	ErrNoVolume = volume.ErrNotFound
	// ErrVolumeInUse says that a container has the volume.
	ErrVolumeInUse = volume.ErrInUse
)

// ParseVolume reads what docker's --volume takes: TARGET, SOURCE:TARGET or SOURCE:TARGET:OPTIONS.
func ParseVolume(s string) (ContainerMount, error) { return volume.ParseVolume(s) }

// ParseMount reads what docker's --mount takes: KEY=VALUE,..., as a line of CSV.
func ParseMount(s string) (ContainerMount, error) { return volume.ParseMount(s) }

// ParseTmpfs reads what docker's --tmpfs takes: TARGET or TARGET:OPTIONS.
func ParseTmpfs(s string) (ContainerMount, error) { return volume.ParseMemory(s) }

// Volumes are the volumes with a name of the state directory. A container has a volume for as long as its run, or the
// container itself, has a folder there: also when the process that ran it was killed.
func (rs *Runs) Volumes() VolumeStore {
	return volume.Store{Dir: filepath.Join(rs.Dir, "volumes"), Alive: func(id string) bool {
		for _, dir := range []string{rs.runDir(id), rs.Containers().dir(id)} {
			if _, err := os.Stat(dir); err == nil {
				return true
			}
		}
		return false
	}}
}

// ContainerVolumes are the mounts of a container that is about to be made. The steps are: SpecMounts for its document,
// Make before it is mounted, Fill after.
type ContainerVolumes struct {
	store  volume.Store
	id     string // of the container
	own    string // the folder of the volumes that go with the container
	mounts []volume.Mount
	fresh  []volume.Mount // that are to get what the image has
}

// ContainerVolumes checks the mounts that are asked for a container, and adds the volumes that its image asks for,
// paths of the container. folder is where the container keeps what goes with it; empty: the folder of the run of its
// id.
func (rs *Runs) ContainerVolumes(id, folder string, asked []ContainerMount, image []string) (*ContainerVolumes, error) {
	if folder == "" {
		folder = rs.runDir(id)
	}
	v := &ContainerVolumes{store: rs.Volumes(), id: id, own: filepath.Join(folder, "volumes"), mounts: slices.Clone(asked)}
	for _, target := range image {
		there := func(m volume.Mount) bool { return ocispec.SamePlace(m.Target, target) }
		if slices.ContainsFunc(v.mounts, there) {
			continue
		}
		m, err := volume.ParseVolume(target)
		if err != nil || m.Source != "" {
			return nil, fmt.Errorf("the image has a volume that makes no sense: %q: %w", target, err)
		}
		v.mounts = append(v.mounts, m)
	}
	if err := volume.Check(v.mounts, rs.Dir); err != nil {
		return nil, err
	}
	// What is mounted below another mount comes after it.
	slices.SortStableFunc(v.mounts, func(a, b volume.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return v, nil
}

// path is where the files of a mount are on the host.
func (v *ContainerVolumes) path(m volume.Mount) string {
	switch {
	case m.Type == volume.Bind:
		return m.Source
	case m.Source != "":
		return v.store.DataPath(m.Source)
	}
	name := sha256.Sum256([]byte(m.Target)) // any path fits into a name
	return filepath.Join(v.own, hex.EncodeToString(name[:8]))
}

// SpecMounts are the mounts in the words of the container's document. Their sources are paths of this host; see
// PlaceVolumes.
func (v *ContainerVolumes) SpecMounts() (out []specs.Mount) {
	for _, m := range v.mounts {
		if m.Type == volume.Memory {
			out = append(out, specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
			continue
		}
		options := []string{"rbind", "rprivate"}
		if m.ReadOnly {
			options = append(options, "ro")
			// What is mounted below too. crun 1.8.1 takes it for folders only.
			if fi, err := os.Stat(v.path(m)); err != nil || fi.IsDir() {
				options = append(options, "rro")
			}
		}
		out = append(out, specs.Mount{Destination: m.Target, Type: "bind", Source: v.path(m), Options: options})
	}
	return out
}

// Make makes the volumes that do not exist, and says that the container has them.
func (v *ContainerVolumes) Make(ctx context.Context) error {
	for _, m := range v.mounts {
		if m.Type != volume.Named {
			continue
		}
		empty := true
		var err error
		if m.Source == "" {
			err = os.MkdirAll(v.path(m), 0o755)
		} else {
			_, empty, err = v.store.Use(ctx, m.Source, v.id)
		}
		if err != nil {
			return fmt.Errorf("volume at %s: %w", m.Target, err)
		}
		if empty && !m.NoCopy {
			v.fresh = append(v.fresh, m)
		}
	}
	return nil
}

// Fill gives volumes that are empty what the container's image has at their places.
func (v *ContainerVolumes) Fill(ctx context.Context, vm *uvm.UtilityVM, m *layers.Mounted) error {
	for _, mount := range v.fresh {
		if err := v.fill(ctx, vm, m, mount); err != nil {
			return fmt.Errorf("copy what the image has at %s into its volume: %w", mount.Target, err)
		}
	}
	v.fresh = nil
	return nil
}

func (v *ContainerVolumes) fill(ctx context.Context, vm *uvm.UtilityVM, m *layers.Mounted, mount volume.Mount) error {
	if h, ok := vm.Machine().(vmm.HostPather); ok && vm.Limits().HostFiles {
		return treecopy.Fill(h.HostPath(m.Root), mount.Target, v.path(mount))
	}
	to, ok := m.VolumePath(layers.Volume{Path: v.path(mount), ReadOnly: mount.ReadOnly})
	if !ok || mount.ReadOnly { // nothing can be written there
		return nil
	}
	said := plaintext.NewHead(1000)
	code, err := vm.Run(ctx, vmm.ProcessSpec{Stderr: said,
		Args: []string{agentPath, treecopy.Flag, "fill", m.Root, mount.Target, to}})
	if err == nil && code != 0 {
		err = fmt.Errorf("the guest says: %q", said.String())
	}
	return err
}

// agentPath is where a guest has the program with its agent.
const agentPath = "/init"

// BindVolumes are the folders and files of the host that the bind mounts of a document name, each once.
func BindVolumes(s *specs.Spec) (out []layers.Volume) {
	if s == nil {
		return nil
	}
	for _, m := range s.Mounts {
		if v, ok := bindVolume(m); ok && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func bindVolume(m specs.Mount) (layers.Volume, bool) {
	if !ocispec.IsBind(m) {
		return layers.Volume{}, false
	}
	readOnly := slices.Contains(m.Options, "ro")
	return layers.Volume{Path: filepath.Clean(m.Source), ReadOnly: readOnly}, true
}

// PlaceVolumes returns a document whose bind mounts name the places that the folders and files of the host have in the
// machine: those that BindVolumes said in layers.Request.Volumes, and layers.Mounted.VolumePaths says.
func PlaceVolumes(s *specs.Spec, volumes []layers.Volume, paths []string) *specs.Spec {
	if s == nil || len(volumes) == 0 {
		return s
	}
	placed := *s
	placed.Mounts = slices.Clone(s.Mounts)
	for i, m := range placed.Mounts {
		v, ok := bindVolume(m)
		if !ok {
			continue
		}
		same := func(o layers.Volume) bool {
			return o.ReadOnly == v.ReadOnly && hostpath.Identity(o.Path) == hostpath.Identity(v.Path)
		}
		if n := slices.IndexFunc(volumes, same); n >= 0 && n < len(paths) {
			placed.Mounts[i].Source = paths[n]
		}
	}
	return &placed
}
