package layers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Attach says how the layers of a Linux container travel into the VM.
type Attach uint8

// The ways. Each gives the same root, but for folders that a layer's tar implies without an entry of
// their own: an index keeps the attributes that they have below, an overlay shows what the layer holds
// (0755, root).
//
// What a VM has already is shared. An index is shared by containers with the same whole chain of layers
// only: two images on one base, both EROFS, have the base in the guest's page cache twice, though nothing of
// it is copied on the host. Where memory of the VM counts more than the time of a mount, AttachSeparate
// shares layer by layer, and so does AttachOneDisk where it makes partitions (ext4, layers with a hash tree).
const (
	// AttachAuto puts EROFS layers, and layers with a hash tree, behind one disk where the VM can. It
	// attaches other layers one by one: as VPMEM, or over SCSI when that does not take them.
	AttachAuto Attach = iota
	// AttachSeparate attaches every layer by itself.
	AttachSeparate
	// AttachOneDisk is AttachAuto, and puts other layers behind one disk too, those that the VM does not
	// have yet.
	AttachOneDisk
)

// partitionMounts is how many partitions of one disk are mounted at a time: more do not help, the
// guest's processors are the limit.
const partitionMounts = 4

// attachLayers brings all layers into a Linux VM and returns the guest paths that make them up,
// top-most first.
//
// Behind one disk there are two ways. EROFS layers get an index: a file system without contents that
// shows what an overlay of the layers would show and points into them, so that the guest mounts one
// thing and an overlay has one lower directory, however many layers there are. What cannot be indexed
// (ext4, layers that the guest is to check against a hash tree, EROFS of others that is compressed)
// becomes the partitions of the disk, each mounted by itself. The benchmarks show both next to one disk
// per layer.
func attachLayers(ctx context.Context, r *Request, c *uvm.Claim, images []image) ([]string, error) {
	if len(images) > 1 && r.Attach != AttachSeparate && r.VM.Limits().CompositeDisks {
		partitions := r.Attach == AttachOneDisk || checked(images)
		if indexable(images) {
			paths, err := attachIndex(ctx, r, c, images)
			if !notForIndex(err) {
				return paths, err
			}
			partitions = true
		}
		if partitions && partitionable(images) {
			return attachPartitions(ctx, r, c, images)
		}
	}
	paths := make([]string, len(images))
	for i, img := range images {
		path, err := attachLayer(ctx, r, c, img)
		if err != nil {
			return nil, err
		}
		paths[i] = path
	}
	return paths, nil
}

// attachLayer attaches one layer by itself and returns its guest path.
func attachLayer(ctx context.Context, r *Request, c *uvm.Claim, img image) (string, error) {
	if img.tree {
		le, err := r.VM.Plan9().Share(ctx, c, roleLayer, img.path, "", true)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", img.path, err)
		}
		return le.GuestPath(), nil
	}
	if img.layer.Partition == 0 {
		le, err := r.VM.VPMEM().Attach(ctx, c, roleLayer, uvm.PMEM{
			Path: img.path, Version: img.version, Bytes: img.size, Verity: img.layer.Verity})
		if err == nil {
			return le.GuestPath(), nil
		}
		if !vpmemFallback(err) {
			return "", attachError(img, err)
		}
	}
	le, err := r.VM.SCSI().Attach(ctx, c, roleLayer, uvm.Disk{Path: img.path, Version: img.version, ReadOnly: true,
		Mount: &uvm.DiskMount{Identity: img.identity(), Partition: img.layer.Partition, Verity: img.layer.Verity}})
	if err != nil {
		return "", attachError(img, err)
	}
	return le.GuestPath(), nil
}

// attachError names the layer that an error of the VM is about. What the guest finds nothing on was whole
// once.
func attachError(img image, err error) error {
	if errors.Is(err, vmm.ErrInvalid) {
		return fmt.Errorf("layer %s is damaged: %w; import it again", img.path, err)
	}
	return fmt.Errorf("layer %s: %w", img.path, err)
}

// vpmemFallback reports whether SCSI may serve where VPMEM does not.
func vpmemFallback(err error) bool {
	return errors.Is(err, uvm.ErrNoVPMEM) || errors.Is(err, uvm.ErrNoAvailableLocation) ||
		errors.Is(err, uvm.ErrMaxVPMEMLayerSize) || errors.Is(err, uvm.ErrVPMEMAlign) ||
		errors.Is(err, vmm.ErrNotPluggable)
}

// identity says which layer this is, whatever disk it travels on.
func (img image) identity() string {
	id := hostpath.Identity(img.path) + "@" + img.version
	if img.layer.Partition != 0 {
		id += fmt.Sprintf("#%d", img.layer.Partition)
	}
	if v := img.layer.Verity; v != nil {
		id += "#verity=" + v.RootDigest
	}
	return id
}

func indexable(images []image) bool {
	for _, img := range images {
		if !img.erofs || img.layer.Partition != 0 || img.layer.Verity != nil {
			return false
		}
	}
	return true
}

// notForIndex reports whether an index was not made because of what only the layers' contents tell. The
// guest may know what package erofs does not.
func notForIndex(err error) bool {
	return errors.Is(err, erofs.ErrUnsupported) || errors.Is(err, erofs.ErrNotEROFS) ||
		errors.Is(err, erofs.ErrTooLarge)
}

// checked reports whether the guest is to check any of the layers.
func checked(images []image) bool {
	return slices.ContainsFunc(images, func(img image) bool { return img.layer.Verity != nil })
}

func partitionable(images []image) bool {
	for _, img := range images {
		if img.layer.Partition != 0 {
			return false
		}
	}
	return len(images) <= gpt.MaxPartitions
}

// attachIndex mounts one index over all layers. Containers with the same chain of layers share it.
func attachIndex(ctx context.Context, r *Request, c *uvm.Claim, images []image) ([]string, error) {
	sum := sha256.New()
	for _, img := range images {
		fmt.Fprintf(sum, "%s\x00", img.identity())
	}
	disk := uvm.Disk{
		Path: fmt.Sprintf("index of %d layers", len(images)), ReadOnly: true,
		Mount: &uvm.DiskMount{Identity: fmt.Sprintf("chain/%x", sum.Sum(nil)), Filesystem: "erofs"},
	}
	if le, err := r.VM.SCSI().Share(ctx, c, roleLayer, disk.Mount.Identity); err == nil {
		return []string{le.GuestPath()}, nil
	} else if !errors.Is(err, uvm.ErrNotAttached) {
		return nil, err
	}
	parts, remove, err := oneDisk(r, images, layerdir.IndexDisk)
	if err != nil {
		return nil, err
	}
	defer remove()
	disk.Extents = parts
	le, err := r.VM.SCSI().Attach(ctx, c, roleLayer, disk)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", disk.Path, err)
	}
	return []string{le.GuestPath()}, nil
}

// attachPartitions puts the layers that are not in the VM on one disk, a partition each.
func attachPartitions(ctx context.Context, r *Request, c *uvm.Claim, images []image) ([]string, error) {
	paths := make([]string, len(images))
	var missing []int
	for i, img := range images {
		le, err := r.VM.SCSI().Share(ctx, c, roleLayer, img.identity())
		switch {
		case err == nil:
			paths[i] = le.GuestPath()
		case errors.Is(err, uvm.ErrNotAttached):
			missing = append(missing, i)
		default:
			return nil, err
		}
	}
	if len(missing) == 0 {
		return paths, nil
	}
	travel := make([]image, len(missing))
	for i, w := range missing {
		travel[i] = images[w]
	}
	parts, remove, err := oneDisk(r, travel, layerdir.PartitionDisk)
	if err != nil {
		return nil, err
	}
	defer remove()
	disk := uvm.Disk{Path: fmt.Sprintf("partitions for %d layers", len(travel)), ReadOnly: true, Extents: parts}
	mount := func(ctx context.Context, partition int) error {
		img := travel[partition]
		d := disk
		d.Mount = &uvm.DiskMount{Identity: img.identity(), Partition: uint64(partition + 1), Verity: img.layer.Verity}
		le, err := r.VM.SCSI().Attach(ctx, c, roleLayer, d)
		if err != nil {
			return fmt.Errorf("layer %s: %w", img.path, err)
		}
		paths[missing[partition]] = le.GuestPath()
		return nil
	}
	// The first brings the disk; the others only mount.
	if err := mount(ctx, 0); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(partitionMounts)
	for p := 1; p < len(missing); p++ {
		g.Go(func() error { return mount(gctx, p) })
	}
	return paths, g.Wait()
}

// extents are those of a disk made of files, as a machine wants them.
func extents(disk []layerdir.Extent) []vmm.Extent {
	out := make([]vmm.Extent, len(disk))
	for i, e := range disk {
		out[i] = vmm.Extent(e)
	}
	return out
}

// oneDisk calls plan with the name of a file in a folder of its own, beside the VM's state, and returns
// the disk that it describes. remove removes the folder: the machine has the file open by the time
// the disk is attached, and from then on it cannot be left behind. Before, the next uvm.Open removes it.
func oneDisk(r *Request, images []image, plan func(file string, layers []string) ([]layerdir.Extent, error)) (
	disk []vmm.Extent, remove func(), err error) {
	dir, err := r.VM.TempDir()
	if err != nil {
		return nil, nil, fmt.Errorf("one disk for %d layers: %w", len(images), err)
	}
	remove = func() { _ = os.RemoveAll(dir) }
	paths := make([]string, len(images))
	for i, img := range images {
		paths[i] = img.path
	}
	parts, err := plan(filepath.Join(dir, "head"), paths)
	if err != nil {
		remove()
		return nil, nil, fmt.Errorf("one disk for %d layers: %w", len(images), err)
	}
	return extents(parts), remove, nil
}
