package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// RootfsMount is a mount that describes a container's root, as containerd's snapshotters return it.
type RootfsMount struct {
	Type    string
	Source  string
	Target  string
	Options []string
}

// The types of a RootfsMount.
const (
	MountWindowsLayer    = "windows-layer"
	MountLCOWLayer       = "lcow-layer"
	MountLCOWPartitioned = "lcow-partitioned-layer"
	MountCimFS           = "CimFS"
	MountBlockCIM        = "BlockCIM"
)

// ErrRootDescription: the description of a container's root is incomplete or contradictory. containerd calls this a
// failed precondition.
var ErrRootDescription = fmt.Errorf("%w: description of the root", ErrInvalid)

// Described is a root that was described by a mount, or by the layer folders of an OCI spec.
type Described struct {
	// Layers, Scratch and CIM are the fields of a Request.
	Layers  []Layer
	Scratch string
	CIM     *wclayer.CIMMount
	// OS is the system of the layers; empty if the description does not tell.
	OS vmm.OS
	// hostOnly is the mount type if it can only be mounted on the host itself, else "".
	hostOnly string
}

// Limits of descriptions, which are untrusted input.
const (
	maxDescribedLayers = 1000
	maxOption          = 1 << 20
)

// ParseRoot parses the description of a root: either one mount, or the layer folders of an OCI runtime spec (layers
// top layer first, scratch last). It does not access any file.
func ParseRoot(layerFolders []string, rootfs []RootfsMount) (*Described, error) {
	switch {
	case len(layerFolders) > 0 && len(rootfs) > 0:
		return nil, fmt.Errorf("%w: both layer folders (%d) and rootfs mounts (%d) are given: give one of them",
			ErrRootDescription, len(layerFolders), len(rootfs))
	case len(rootfs) > 1:
		return nil, fmt.Errorf("%w: %d rootfs mounts: give one", ErrRootDescription, len(rootfs))
	case len(rootfs) == 1:
		return parseMount(rootfs[0])
	case len(layerFolders) < 2:
		return nil, fmt.Errorf("%w: %d layer folders and no rootfs mount: "+
			"give at least one layer folder and, last, the scratch",
			ErrRootDescription, len(layerFolders))
	}
	last := len(layerFolders) - 1
	d := &Described{Scratch: layerFolders[last]}
	if err := d.folders(layerFolders[:last]); err != nil {
		return nil, err
	}
	return d, nil
}

// Request returns the request to mount the root in a VM or, as a VM, the host itself. vm is nil for MountV1.
func (d *Described) Request(vm *uvm.UtilityVM, id string, host wclayer.Host) (*Request, error) {
	if vm != nil && !vm.Limits().WritableLayers && d.hostOnly != "" {
		return nil, fmt.Errorf("%w: %s layers can only be mounted on the host itself, not in VM %s",
			ErrRootDescription, d.hostOnly, vm.ID())
	}
	if vm != nil && d.OS != "" && vm.OS() != d.OS {
		return nil, fmt.Errorf("%w: layers for %s in VM %s, which runs %s", ErrRootDescription, d.OS, vm.ID(), vm.OS())
	}
	if vm == nil && d.OS == vmm.Linux {
		return nil, fmt.Errorf("%w: layers for Linux on the Windows host itself: mount them in a VM that runs Linux",
			ErrRootDescription)
	}
	return &Request{VM: vm, ID: id, Layers: d.Layers, Scratch: d.Scratch, CIM: d.CIM, Host: host}, nil
}

func parseMount(m RootfsMount) (*Described, error) {
	parse := mountTypes[m.Type]
	if parse.read == nil {
		for _, name := range slices.Sorted(maps.Keys(mountTypes)) {
			if strings.EqualFold(name, m.Type) {
				return nil, fmt.Errorf("%w: mount type %q: it is spelled %q", ErrRootDescription, m.Type, name)
			}
		}
		return nil, fmt.Errorf("%w: mount type %q is unknown: use one of %s", ErrRootDescription, m.Type,
			strings.Join(slices.Sorted(maps.Keys(mountTypes)), ", "))
	}
	if m.Target != "" {
		return nil, fmt.Errorf("%w: %s mount has the target %q: the root has none",
			ErrRootDescription, m.Type, m.Target)
	}
	opts, err := readOptions(m, parse.options)
	if err != nil {
		return nil, err
	}
	d := &Described{Scratch: m.Source, OS: parse.os}
	if err := parse.read(d, opts); err != nil {
		return nil, fmt.Errorf("%s mount: %w", m.Type, err)
	}
	if err := d.scratch(); err != nil {
		return nil, err
	}
	return d, nil
}

// mountTypes has the system, the allowed options and the parser of each mount type.
var mountTypes = map[string]struct {
	os      vmm.OS
	options []string
	read    func(*Described, map[string]string) error
}{
	MountWindowsLayer:    {vmm.Windows, []string{optParents, optRW}, (*Described).readParents},
	MountLCOWLayer:       {vmm.Linux, []string{optParents, optRW}, (*Described).readParents},
	MountLCOWPartitioned: {vmm.Linux, []string{optScratch, optPartitioned}, (*Described).readPartitioned},
	MountCimFS:           {vmm.Windows, []string{optParents, optCIMs, optRW}, (*Described).readForked},
	MountBlockCIM:        {vmm.Windows, []string{optCIMs, optBlockType, optMerged, optRW}, (*Described).readBlock},
}

const (
	optParents     = "parentLayerPaths"
	optCIMs        = "parentCimPaths"
	optScratch     = "scratch"
	optPartitioned = "parent-partitioned-layers"
	optBlockType   = "blockCIMType"
	optMerged      = "mergedCIMPath"
	optRW          = "rw" // the default
)

// readOptions splits options into names and values and refuses options that are not allowed.
func readOptions(m RootfsMount, allowed []string) (map[string]string, error) {
	out := map[string]string{}
	for _, o := range m.Options {
		name, value, hasValue := strings.Cut(o, "=")
		_, twice := out[name]
		switch {
		case len(o) > maxOption:
			return nil, fmt.Errorf("%w: %s mount: option %.40q… has %d bytes", ErrRootDescription, m.Type, o, len(o))
		case strings.EqualFold(name, "ro"):
			return nil, fmt.Errorf("%w: %s mount: option ro: the root of a container is writable; "+
				"use an active snapshot, not a view",
				ErrRootDescription, m.Type)
		case !slices.Contains(allowed, name):
			return nil, fmt.Errorf("%w: %s mount: option %q is unknown: use %s",
				ErrRootDescription, m.Type, o, strings.Join(allowed, ", "))
		case twice:
			return nil, fmt.Errorf("%w: %s mount: option %s is given twice", ErrRootDescription, m.Type, name)
		case hasValue == (name == optRW):
			return nil, fmt.Errorf("%w: %s mount: option %q: its value is missing, or it takes none",
				ErrRootDescription, m.Type, o)
		}
		out[name] = value
	}
	return out, nil
}

// optionList parses an option that is a JSON array with at least one entry.
func optionList[T any](opts map[string]string, name string) ([]T, error) {
	text, given := opts[name]
	if !given {
		return nil, fmt.Errorf("%w: option %s is missing", ErrRootDescription, name)
	}
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	var out []T
	if err := dec.Decode(&out); err != nil {
		return nil, fmt.Errorf("%w: option %s is no list: %w", ErrRootDescription, name, err)
	}
	if dec.More() {
		return nil, fmt.Errorf("%w: option %s goes on after its list", ErrRootDescription, name)
	}
	if len(out) == 0 || len(out) > maxDescribedLayers {
		return nil, fmt.Errorf("%w: option %s has %d entries, give 1 to %d",
			ErrRootDescription, name, len(out), maxDescribedLayers)
	}
	return out, nil
}

func (d *Described) readParents(opts map[string]string) error {
	parents, err := optionList[string](opts, optParents)
	if err != nil {
		return err
	}
	return d.folders(parents)
}

// folders sets the layers and checks that layers and scratch are distinct.
func (d *Described) folders(folders []string) error {
	if len(folders) > maxDescribedLayers {
		return fmt.Errorf("%w: %d layer folders, at most %d", ErrRootDescription, len(folders), maxDescribedLayers)
	}
	for _, f := range folders {
		d.Layers = append(d.Layers, Layer{Folder: f})
	}
	if err := d.scratch(); err != nil {
		return err
	}
	return distinct("layer folder", append(slices.Clone(folders), d.Scratch))
}

func (d *Described) scratch() error { return localPath(ErrRootDescription, "scratch", d.Scratch) }

// distinct checks paths, and that no two of them are the same, however they are spelled.
func distinct(what string, paths []string) error {
	seen := map[string]string{}
	for _, p := range paths {
		if err := localPath(ErrRootDescription, what, p); err != nil {
			return err
		}
		id := hostpath.Identity(p)
		if first, twice := seen[id]; twice {
			return fmt.Errorf("%w: %w: %q is also given as %q", ErrRootDescription, ErrDuplicateLayer, p, first)
		}
		seen[id] = p
	}
	return nil
}

func (d *Described) readPartitioned(opts map[string]string) error {
	layers, err := optionList[struct {
		Path      string
		Partition uint64
	}](opts, optPartitioned)
	if err != nil {
		return err
	}
	d.Scratch = opts[optScratch] // this mount type does not use the source
	seen := map[Layer]bool{}
	for _, l := range layers {
		// One disk may hold many layers: the pair must be unique.
		key := Layer{File: hostpath.Identity(l.Path), Partition: l.Partition}
		if seen[key] {
			return fmt.Errorf("%w: %w: partition %d of %q", ErrRootDescription, ErrDuplicateLayer, l.Partition, l.Path)
		}
		seen[key] = true
		if err := localPath(ErrRootDescription, "layer", l.Path); err != nil {
			return err
		}
		d.Layers = append(d.Layers, Layer{File: l.Path, Partition: l.Partition})
	}
	return nil
}

// cimAt splits the path of an image into its directory and its name.
func cimAt(path string) (wclayer.CIM, error) {
	trimmed := strings.TrimRight(path, `\/`)
	i := strings.LastIndexAny(trimmed, `\/`)
	c := wclayer.CIM{Name: trimmed[i+1:]}
	if i > 0 {
		c.Dir = trimmed[:i]
	}
	if c.Dir == "" || c.Name == "" || !hostpath.IsAbs(path) || !hostpath.IsWindows(path) {
		return c, fmt.Errorf("%w: image %q: give an absolute Windows path, of the folder or block file and in it the name",
			ErrRootDescription, path)
	}
	return c, nil
}

func cimsAt(paths []string) ([]wclayer.CIM, error) {
	out := make([]wclayer.CIM, len(paths))
	seen := map[string]bool{}
	for i, p := range paths {
		var err error
		if out[i], err = cimAt(p); err != nil {
			return nil, err
		}
		if id := hostpath.Identity(p); seen[id] {
			return nil, fmt.Errorf("%w: %w: image %q", ErrRootDescription, ErrDuplicateLayer, p)
		} else {
			seen[id] = true
		}
	}
	return out, nil
}

// readForked: the top image includes those below it.
func (d *Described) readForked(opts map[string]string) error {
	parents, err1 := optionList[string](opts, optParents)
	cims, err2 := optionList[string](opts, optCIMs)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if len(parents) != len(cims) {
		return fmt.Errorf("%w: %d layer folders and %d images: give an image for each folder",
			ErrRootDescription, len(parents), len(cims))
	}
	if err := distinct("layer folder", append(parents, d.Scratch)); err != nil {
		return err
	}
	all, err := cimsAt(cims)
	if err != nil {
		return err
	}
	d.CIM, d.hostOnly = &wclayer.CIMMount{Image: all[0]}, MountCimFS
	return nil
}

var blockTypes = map[string]wclayer.BlockType{"device": wclayer.BlockDevice, "file": wclayer.BlockFile}

func (d *Described) readBlock(opts map[string]string) error {
	kind, known := blockTypes[opts[optBlockType]]
	if !known {
		return fmt.Errorf("%w: option %s is %q: use device or file",
			ErrRootDescription, optBlockType, opts[optBlockType])
	}
	paths, err := optionList[string](opts, optCIMs)
	if err != nil {
		return err
	}
	all, err := cimsAt(paths)
	if err != nil {
		return err
	}
	merged, given := opts[optMerged]
	switch {
	case len(all) == 1 && given:
		return fmt.Errorf("%w: option %s with one parent: there is nothing to merge", ErrRootDescription, optMerged)
	case len(all) == 1:
		d.CIM = &wclayer.CIMMount{Kind: kind, Image: all[0]}
		return nil
	case !given:
		return fmt.Errorf("%w: %d parents: option %s is missing", ErrRootDescription, len(all), optMerged)
	}
	top, err := cimAt(merged)
	d.CIM = &wclayer.CIMMount{Kind: kind, Image: top, Sources: all}
	return err
}
