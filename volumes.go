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

// Mounts and volumes of containers.
type (
	// ContainerMount is a mount that the user requested.
	ContainerMount = volume.Mount
	// VolumeStore manages named volumes.
	VolumeStore = volume.Store
	// VolumeInfo describes a volume.
	VolumeInfo = volume.Info
)

// Errors about mounts and volumes.
var (
	// ErrMount is matched by errors about an invalid mount.
	ErrMount = volume.ErrInvalid
	// ErrNoVolume says that no volume has that name.
	ErrNoVolume = volume.ErrNotFound
	// ErrVolumeInUse says that a container uses the volume.
	ErrVolumeInUse = volume.ErrInUse
)

// ParseVolume parses the value of docker's --volume: TARGET, SOURCE:TARGET or SOURCE:TARGET:OPTIONS.
func ParseVolume(s string) (ContainerMount, error) { return volume.ParseVolume(s) }

// ParseMount parses the value of docker's --mount: KEY=VALUE,... as a line of CSV.
func ParseMount(s string) (ContainerMount, error) { return volume.ParseMount(s) }

// ParseTmpfs parses the value of docker's --tmpfs: TARGET or TARGET:OPTIONS.
func ParseTmpfs(s string) (ContainerMount, error) { return volume.ParseMemory(s) }

// Volumes returns the store of the named volumes of rs.Dir. A volume is in use as long as the folder of the container,
// or of its run, exists, even if the process that ran it was killed.
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

// ContainerVolumes are the mounts of a container to be created. Use SpecMounts for its spec, call Make before the
// container is mounted, and Fill afterwards.
type ContainerVolumes struct {
	store  volume.Store
	id     string // of the container
	own    string // folder of the container's anonymous volumes
	mounts []volume.Mount
	fresh  []volume.Mount // empty volumes, for Fill
}

// ContainerVolumes checks the requested mounts of a container and adds anonymous volumes for image, the container
// paths that its image declares as volumes. folder is where anonymous volumes are stored; empty: the folder of the run
// called id.
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
			return nil, fmt.Errorf("the image declares an invalid volume %q: %w", target, err)
		}
		v.mounts = append(v.mounts, m)
	}
	if err := volume.Check(v.mounts, rs.Dir); err != nil {
		return nil, err
	}
	// A mount below another one must come after it.
	slices.SortStableFunc(v.mounts, func(a, b volume.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return v, nil
}

// path returns the host path of a mount's source.
func (v *ContainerVolumes) path(m volume.Mount) string {
	switch {
	case m.Type == volume.Bind:
		return m.Source
	case m.Source != "":
		return v.store.DataPath(m.Source)
	}
	name := sha256.Sum256([]byte(m.Target)) // any path becomes a valid file name
	return filepath.Join(v.own, hex.EncodeToString(name[:8]))
}

// SpecMounts returns the mounts as OCI mounts. Their sources are host paths; see PlaceVolumes.
func (v *ContainerVolumes) SpecMounts() (out []specs.Mount) {
	for _, m := range v.mounts {
		if m.Type == volume.Memory {
			out = append(out, specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
			continue
		}
		options := []string{"rbind", "rprivate"}
		if m.ReadOnly {
			options = append(options, "ro")
			// Mounts below it read-only, too. crun 1.8.1 accepts rro for folders only.
			if fi, err := os.Stat(v.path(m)); err != nil || fi.IsDir() {
				options = append(options, "rro")
			}
		}
		out = append(out, specs.Mount{Destination: m.Target, Type: "bind", Source: v.path(m), Options: options})
	}
	return out
}

// Make creates the volumes that do not exist, and records that the container uses them.
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

// Fill copies the files that the image has at the mount points of empty volumes into the volumes.
func (v *ContainerVolumes) Fill(ctx context.Context, vm *uvm.UtilityVM, m *layers.Mounted) error {
	for _, mount := range v.fresh {
		if err := v.fill(ctx, vm, m, mount); err != nil {
			return fmt.Errorf("copy the image's files at %s into the volume: %w", mount.Target, err)
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
	if !ok || mount.ReadOnly { // not writable
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

// agentPath is the path of the guest agent's executable in a guest.
const agentPath = "/init"

// BindVolumes returns the sources of the bind mounts of a spec, without duplicates.
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

// PlaceVolumes returns a copy of s whose bind mounts name the guest paths of their sources: paths[i] is that of
// volumes[i]. volumes is the result of BindVolumes, mounted by layers.Request.Volumes; paths that of
// layers.Mounted.VolumePaths.
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
