package rootfs

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// DiskTypes and Transforms are the mount types and transforms that containerd passes to this shim without mounting them
// on the host: disks, and how they are combined. Without Transforms, containerd would mount the disks to fill in their
// mount points.
var (
	DiskTypes  = []string{"erofs", "ext4", "loop"}
	Transforms = []string{"format", "mkdir"}
)

// Layer is a read-only disk image: EROFS, or ext4 if it is the only disk.
type Layer struct {
	File   string
	Verity string // containerd's file about the image's dm-verity hash tree; empty: none
}

// Disks is a root file system that consists of disk images attached to the VM.
type Disks struct {
	Layers []Layer // topmost first
	// Disk is a writable raw ext4 image. With Layers its directory upper is the overlay's upper directory, else it is
	// the whole root.
	Disk string
	// Work is a directory of the snapshot for a scratch disk that this shim creates, if the snapshotter provides none.
	Work string
}

// Supported mount types that combine disks.
const (
	formOverlay = "format/mkdir/overlay"
	formBind    = "format/bind"
)

// areDisks reports whether mounts are disks to attach to the VM, rather than mounts to make on the host.
func areDisks(mounts []mount.Mount) bool {
	if len(mounts) == 1 {
		switch m := mounts[0]; m.Type {
		case "erofs":
			return true
		case "ext4": // the guest cannot honour other options
			return onlyOptions(m.Options, "loop", "rw", "ro")
		}
	}
	return slices.ContainsFunc(mounts, func(m mount.Mount) bool { return strings.HasPrefix(m.Type, "format/") })
}

func onlyOptions(options []string, words ...string) bool {
	return !slices.ContainsFunc(options, func(o string) bool { return !slices.Contains(words, o) })
}

// disks plans a root of disks. mounts are the disks, followed by the mount that combines them unless there is one disk.
func disks(mounts []mount.Mount) (*Disks, error) {
	last := len(mounts) - 1
	d := &Disks{}
	if len(mounts) == 1 && mounts[0].Type == "ext4" {
		if slices.Contains(mounts[0].Options, "ro") {
			d.Layers = []Layer{{File: mounts[0].Source}}
		} else {
			d.Disk = mounts[0].Source
		}
		return d, absolute(mounts[0])
	}
	if len(mounts) == 1 {
		mounts, last = []mount.Mount{mounts[0], {Type: formBind, Source: "{{ mount 0 }}", Options: []string{"ro"}}}, 1
	}
	parts := mounts[:last]
	for _, m := range parts {
		if m.Type != "erofs" && m.Type != "ext4" {
			return nil, refuse(m, "only disks can be combined with other disks")
		}
		if err := absolute(m); err != nil {
			return nil, err
		}
	}
	lower, disk, err := d.combine(mounts[last], len(parts))
	if err != nil {
		return nil, refuse(mounts[last], err.Error())
	}
	if disk >= 0 {
		m := parts[disk]
		if m.Type != "ext4" || !onlyOptions(m.Options, "loop", "rw") {
			return nil, refuse(m, fmt.Sprintf("it is to be written to, and is no ext4 or has options %q", m.Options))
		}
		d.Disk = m.Source
	}
	for _, i := range lower {
		if err := d.layer(parts[i]); err != nil {
			return nil, refuse(parts[i], err.Error())
		}
	}
	return d, nil
}

func refuse(m mount.Mount, why string) error {
	return fmt.Errorf("root file system: mount of type %q from %q: %s: %w", m.Type, m.Source, why,
		errdefs.ErrNotImplemented)
}

func absolute(m mount.Mount) error {
	if !filepath.IsAbs(m.Source) {
		return refuse(m, "its path is not absolute")
	}
	return nil
}

// layer adds a layer disk; if that is an index of other devices, it adds those instead. A disk that is already a layer
// is skipped: the upper one hides it completely.
func (d *Disks) layer(m mount.Mount) error {
	if m.Type != "erofs" {
		return errors.New("it is to be a layer, and is no EROFS image")
	}
	var devices []Layer // bottommost first
	verity := ""
	for _, o := range m.Options {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case o == "ro" || o == "loop":
		case name == "device" && filepath.IsAbs(value):
			devices = append(devices, Layer{File: value})
		case name == "X-containerd.dmverity" && filepath.IsAbs(value):
			verity = value
		default:
			return fmt.Errorf("the option %q is not supported", o)
		}
	}
	if len(devices) == 0 {
		devices = []Layer{{m.Source, verity}}
	} else if verity != "" {
		return errors.New("a hash tree of an index of other devices is not supported")
	}
	for _, l := range slices.Backward(devices) {
		if !slices.ContainsFunc(d.Layers, func(have Layer) bool { return have.File == l.File }) {
			d.Layers = append(d.Layers, l)
		}
	}
	return nil
}

// combine parses the mount that combines n disks. It returns the indexes of the layers, topmost first, and that of the
// writable disk, or -1. It sets d.Work if the upper directory is on the host.
func (d *Disks) combine(m mount.Mount, n int) (lower []int, disk int, err error) {
	disk = -1
	if m.Type == formBind {
		if !onlyOptions(m.Options, "ro", "rbind") || !slices.Contains(m.Options, "ro") {
			return nil, -1, fmt.Errorf("the options %q are not supported", m.Options)
		}
		at, rest, err := place(m.Source, n)
		if err == nil && rest != "" || len(at) != 1 {
			err = fmt.Errorf("%q is not a whole disk", m.Source)
		}
		return at, -1, err
	}
	if m.Type != formOverlay {
		return nil, -1, fmt.Errorf("only %s and %s are supported", formOverlay, formBind)
	}
	written := map[string]string{} // by option
	for _, o := range m.Options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "lowerdir":
			for _, part := range strings.Split(value, ":") {
				at, rest, err := place(part, n)
				if err == nil && rest != "" || err == nil && len(at) == 0 {
					err = fmt.Errorf("the layer %q is not a whole disk", part)
				}
				if err != nil {
					return nil, -1, err
				}
				lower = append(lower, at...)
			}
		case "upperdir", "workdir":
			written[name] = value
		case "X-containerd.mkdir.path": // the guest creates these two
			path, mode, _ := strings.Cut(value, ":")
			at, rest, err := place(path, n)
			if err != nil || len(at) != 1 || rest != "/upper" && rest != "/work" || mode != "0755" {
				return nil, -1, fmt.Errorf("the folder %q is not supported", value)
			}
		case "ro", "volatile":
		default:
			if o != "index=off" && o != "nfs_export=off" {
				return nil, -1, fmt.Errorf("the option %q is not supported", o)
			}
		}
	}
	if len(lower) == 0 {
		return nil, -1, fmt.Errorf("there are no layers in %q", m.Options)
	}
	if len(written) == 0 {
		return lower, -1, nil
	}
	up, work := written["upperdir"], written["workdir"]
	upAt, upRest, uerr := place(up, n)
	workAt, workRest, werr := place(work, n)
	switch {
	case uerr != nil || werr != nil:
		return nil, -1, fmt.Errorf("upperdir=%q and workdir=%q are not supported", up, work)
	case len(upAt) == 0 && len(workAt) == 0 && filepath.IsAbs(up) && filepath.IsAbs(work):
		d.Work = filepath.Clean(work)
		return lower, -1, nil
	case slices.Equal(upAt, workAt) && len(upAt) == 1 && upRest == "/upper" && workRest == "/work":
		return lower, upAt[0], nil
	}
	return nil, -1, fmt.Errorf("upperdir=%q and workdir=%q are not supported", up, work)
}

// place parses a path that may begin with a template for the mount points of disks, {{ mount I }} or {{ overlay I J }}.
// It returns the indexes of the disks, below n, and the rest of the path.
func place(text string, n int) (at []int, rest string, err error) {
	inner, begins := strings.CutPrefix(text, "{{")
	if !begins {
		if strings.Contains(text, "{{") {
			return nil, "", fmt.Errorf("%q is not understood", text)
		}
		return nil, text, nil
	}
	inner, rest, ends := strings.Cut(inner, "}}")
	words := strings.Fields(inner)
	if !ends || strings.Contains(rest, "{{") || len(words) == 0 {
		return nil, "", fmt.Errorf("%q is not understood", text)
	}
	var numbers []int
	for _, w := range words[1:] {
		i, err := strconv.Atoi(w)
		if err != nil || i < 0 || i >= n {
			return nil, "", fmt.Errorf("%q names none of %d disks", text, n)
		}
		numbers = append(numbers, i)
	}
	switch {
	case words[0] == "mount" && len(numbers) == 1:
		return numbers, rest, nil
	case words[0] == "overlay" && len(numbers) == 2:
		first, last := numbers[0], numbers[1]
		step := 1
		if first > last {
			step = -1
		}
		for i := first; i != last+step; i += step {
			at = append(at, i)
		}
		return at, rest, nil
	}
	return nil, "", fmt.Errorf("%q is not understood", text)
}
