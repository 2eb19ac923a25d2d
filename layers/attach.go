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

// Attach says how the layers of a Linux container are attached to the VM.
type Attach uint8

// The methods. They all give the same root, except for folders that a layer's tar implies without an entry for them:
// with an index, they keep the attributes that they have in lower layers; with an overlay they have those of the layer
// (0755, root).
//
// Layers that are already in the VM are shared. An index is shared only by containers with the same complete chain of
// layers: two EROFS images with the same base have it in the guest's page cache twice, though nothing of it is copied
// on the host. If memory of the VM matters more than mount time, use AttachSeparate, which shares individual layers;
// so does AttachOneDisk where it uses partitions (ext4, layers with a hash tree).
const (
	// AttachAuto puts EROFS layers, and layers with a hash tree, on one composite disk if the VM supports it. It
	// attaches other layers one by one: as VPMEM, or over SCSI if that is not possible.
	AttachAuto Attach = iota
	// AttachSeparate attaches every layer as a disk of its own.
	AttachSeparate
	// AttachOneDisk is AttachAuto, but also puts other layers that are not yet in the VM on one disk.
	AttachOneDisk
)

// partitionMounts is how many partitions of one disk are mounted at a time: the guest's processors are the limit.
const partitionMounts = 4

// attachLayers attaches all layers to a Linux VM and returns their guest paths, top layer first.
//
// There are two ways to put layers on one disk. EROFS layers get an index: a file system without file contents that
// shows what an overlay of the layers would show and refers to their data, so that the guest has a single mount and
// the overlay a single lower directory. Layers that cannot be indexed (ext4, layers with dm-verity, compressed EROFS
// of other tools) become partitions of the disk, each with its own mount. The benchmarks compare both with one disk
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

// attachLayer attaches one layer as a disk of its own and returns its guest path.
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

// attachError adds the layer's path. If the guest finds no file system on it (vmm.ErrInvalid), the image is damaged.
func attachError(img image, err error) error {
	if errors.Is(err, vmm.ErrInvalid) {
		return fmt.Errorf("layer %s is damaged: %w; import it again", img.path, err)
	}
	return fmt.Errorf("layer %s: %w", img.path, err)
}

// vpmemFallback reports whether to try SCSI after an error of VPMEM.
func vpmemFallback(err error) bool {
	return errors.Is(err, uvm.ErrNoVPMEM) || errors.Is(err, uvm.ErrNoAvailableLocation) ||
		errors.Is(err, uvm.ErrMaxVPMEMLayerSize) || errors.Is(err, uvm.ErrVPMEMAlign) ||
		errors.Is(err, vmm.ErrNotPluggable)
}

// identity identifies the layer's content, independently of the disk that it is on.
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

// notForIndex reports whether the layers cannot be indexed because of their contents. The guest may be able to mount
// what package erofs cannot index.
func notForIndex(err error) bool {
	return errors.Is(err, erofs.ErrUnsupported) || errors.Is(err, erofs.ErrNotEROFS) ||
		errors.Is(err, erofs.ErrTooLarge)
}

// checked reports whether any layer is to be verified with dm-verity.
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

// attachIndex attaches one index of all layers. Containers with the same chain of layers share it.
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

// attachPartitions puts the layers that are not yet in the VM on one disk, as partitions.
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
	// The first mount attaches the disk; the others share it.
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

// extents converts extents of package layerdir.
func extents(disk []layerdir.Extent) []vmm.Extent {
	out := make([]vmm.Extent, len(disk))
	for i, e := range disk {
		out[i] = vmm.Extent(e)
	}
	return out
}

// oneDisk calls plan with a file name in a temporary folder next to the VM's state, and returns the disk that it
// describes. The caller must call remove once the disk is attached: the machine then has the file open. If the process
// dies before, the next uvm.Open removes the folder.
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
