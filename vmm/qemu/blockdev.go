package qemu

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

const (
	vhdFooter  = vhd.FooterSize
	sectorSize = 512
)

// blockNode is a block device of QEMU, as an argument of blockdev-add.
type blockNode map[string]any

// lend passes an open file to QEMU and returns the name by which QEMU opens it.
type lend func(*os.File) (name string, err error)

// diskNode returns the block node of a disk, called name. QEMU gets open descriptors: it needs no permission to open
// the files, and uses exactly the files that were checked.
func diskNode(d vmm.SCSIDisk, name string, lend lend) (blockNode, error) {
	if d.Extents != nil {
		return compositeNode(d, name, lend)
	}
	switch d.Kind {
	case "", vmm.VirtualDisk, vmm.PassThru:
	default:
		return nil, fmt.Errorf("%s: a QEMU host has no disks of kind %s: %w", d.Path, d.Kind, errors.ErrUnsupported)
	}
	format := formatOf(d.Path, d.Format)
	f, err := openFile(d.Path, format, !d.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if d.Kind == vmm.PassThru && !f.isDevice {
		return nil, fmt.Errorf("%s: is no block device, which a pass-through disk has to be", d.Path)
	}
	lent, err := lend(f.File)
	if err != nil {
		return nil, err
	}
	protocol := blockNode{"driver": "file", "filename": lent, "node-name": "f" + name}
	if f.isDevice {
		protocol["driver"] = "host_device"
	}
	node := blockNode{"driver": "raw", "node-name": name, "file": protocol}
	switch format {
	case vmm.FormatVHDX:
		node["driver"] = "vhdx"
	case vmm.FormatVHD:
		node["size"] = f.size // without the VHD footer
	}
	for _, n := range []blockNode{node, protocol} {
		n["read-only"] = d.ReadOnly
		if d.ReadOnly {
			// Otherwise QEMU would lock the file, and a second VM could not read it.
			n["force-share"] = true
			n["auto-read-only"] = false
		} else {
			n["discard"] = "unmap"
		}
	}
	return node, nil
}

// formatOf returns the format of a disk, derived from its name if not given.
func formatOf(path string, f vmm.DiskFormat) vmm.DiskFormat {
	if f != vmm.FormatByName {
		return f
	}
	switch hostpath.Ext(path) {
	case ".vhd":
		return vmm.FormatVHD
	case ".vhdx":
		return vmm.FormatVHDX
	}
	return vmm.FormatRaw
}

// checkPath refuses paths that cannot be stored in the records of devices, which are JSON.
func checkPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q: give an absolute path", path)
	case !utf8.ValidString(path):
		return fmt.Errorf("%q: the path is not UTF-8; rename it", path)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("%q: a path cannot hold a zero byte", path)
	}
	return nil
}

// hostFile is an open file of a disk.
type hostFile struct {
	*os.File
	isDevice bool
	size     int64 // size of the content in bytes; 0 for a device
	mode     fs.FileMode
}

// openFile opens the file of a disk and checks its content. It does not block on a pipe or a socket.
func openFile(path string, format vmm.DiskFormat, write bool) (_ hostFile, err error) {
	if err := checkPath(path); err != nil {
		return hostFile{}, err
	}
	// Check the type by name first: opening a device may have side effects, and opening a pipe blocks.
	fi, err := os.Stat(path)
	if err != nil {
		return hostFile{}, accessError(err)
	}
	if err := checkKind(path, fi, format); err != nil {
		return hostFile{}, err
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag|nonBlock, 0)
	if err != nil {
		return hostFile{}, accessError(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if fi, err = f.Stat(); err != nil {
		return hostFile{}, err
	}
	if err := checkKind(path, fi, format); err != nil { // the file may have been replaced
		return hostFile{}, err
	}
	d := hostFile{File: f, isDevice: isBlockDevice(fi), mode: fi.Mode()}
	switch {
	case d.isDevice:
	case format == vmm.FormatRaw:
		d.size = fi.Size()
	default:
		if d.size, err = contentSize(f, fi.Size(), format); err != nil {
			return hostFile{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	return d, nil
}

func isBlockDevice(fi fs.FileInfo) bool {
	return fi.Mode()&fs.ModeDevice != 0 && fi.Mode()&fs.ModeCharDevice == 0
}

func checkKind(path string, fi fs.FileInfo, format vmm.DiskFormat) error {
	switch {
	case isBlockDevice(fi) && format != vmm.FormatRaw:
		return fmt.Errorf("%s: is a block device, not a %s file", path, format)
	case isBlockDevice(fi):
		return nil
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s: is a %s, not a disk image", path, fi.Mode().Type())
	case fi.Size() == 0:
		return fmt.Errorf("%s: the file is empty", path)
	}
	return nil
}

// contentSize reads the headers of a VHD or VHDX. QEMU would refuse invalid ones, but with a poor message.
func contentSize(f *os.File, fileSize int64, format vmm.DiskFormat) (int64, error) {
	if format == vmm.FormatVHD {
		footer, err := vhd.Validate(f, fileSize)
		return footer.Size, err
	}
	disk, err := vhd.ProbeVHDX(f, fileSize)
	if err != nil {
		return 0, fmt.Errorf("%w: create it again", err)
	}
	if disk.Differencing {
		return 0, errors.New("a VHDX with a parent cannot be attached: merge it first")
	}
	return disk.Size, nil
}

func accessError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", vmm.ErrAccessDenied, err)
	}
	return err
}

// compositeNode writes a VMDK descriptor with the files as extents. Zeroes come from a sparse file. Both it and the
// descriptor are unnamed.
func compositeNode(d vmm.SCSIDisk, name string, lend lend) (_ blockNode, err error) {
	if !d.ReadOnly {
		return nil, fmt.Errorf("%s: a disk of extents is read-only", d.Path)
	}
	if len(d.Extents) == 0 {
		return nil, fmt.Errorf("%s: a disk of extents needs at least one", d.Path)
	}
	sources, err := extentFiles(d)
	defer func() {
		for _, f := range sources {
			err = errors.Join(err, f.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	names, err := lendAll(sources, lend)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	// No empty line: QEMU's parser skips into the next line, and adds the extent there twice.
	text.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n" +
		"createType=\"twoGbMaxExtentFlat\"\n")
	for _, e := range d.Extents {
		if e.Path == "" {
			e.Offset = 0
		}
		fmt.Fprintf(&text, "RW %d FLAT \"%s\" %d\n", e.Length/sectorSize, names[e.Path], e.Offset/sectorSize)
	}
	descriptor, err := memoryFile(name, strings.NewReader(text.String()), 0)
	if err != nil {
		return nil, err
	}
	defer descriptor.Close()
	file, err := lend(descriptor)
	if err != nil {
		return nil, err
	}
	node := blockNode{"driver": "vmdk", "node-name": name, "read-only": true, "auto-read-only": false, "force-share": true}
	node["file"] = blockNode{"driver": "file", "filename": file, "node-name": "f" + name,
		"read-only": true, "auto-read-only": false, "force-share": true}
	return node, nil
}

// extentFiles opens the files of a composite disk, each once, by path. All zeroes come from one file with an empty
// path. On failure it also returns the files that are open.
func extentFiles(d vmm.SCSIDisk) (map[string]hostFile, error) {
	files := map[string]hostFile{}
	for i, e := range d.Extents {
		if e.Length <= 0 || e.Offset < 0 || e.Length%sectorSize != 0 || e.Offset%sectorSize != 0 {
			return files, fmt.Errorf("%s: extent %d (%d bytes at %d): lengths and offsets are multiples of %d bytes",
				d.Path, i, e.Length, e.Offset, sectorSize)
		}
		f, open := files[e.Path]
		if !open {
			var err error
			if e.Path == "" {
				f, err = zeroFile(d.Extents)
			} else {
				f, err = openFile(e.Path, vmm.FormatRaw, false)
			}
			if err != nil {
				return files, fmt.Errorf("%s: extent %d: %w", d.Path, i, err)
			}
			files[e.Path] = f
		}
		if e.Path != "" && !f.isDevice && (e.Offset > f.size || e.Length > f.size-e.Offset) {
			return files, fmt.Errorf("%s: extent %d ends at byte %d, but %s has only %d: is it truncated?",
				d.Path, i, e.Offset+e.Length, e.Path, f.size)
		}
	}
	return files, nil
}

// zeroFile returns a sparse file as long as the longest range of zeroes.
func zeroFile(extents []vmm.Extent) (hostFile, error) {
	var zeroes int64
	for _, e := range extents {
		if e.Path == "" {
			zeroes = max(zeroes, e.Length)
		}
	}
	f, err := memoryFile("zeroes", strings.NewReader(""), zeroes)
	return hostFile{File: f, size: zeroes}, err
}

// lendAll passes files to QEMU concurrently, and returns their names by path.
func lendAll(files map[string]hostFile, lend lend) (map[string]string, error) {
	names := make(map[string]string, len(files))
	var mu sync.Mutex
	var group errgroup.Group
	for path, f := range files {
		group.Go(func() error {
			name, err := lend(f.File)
			mu.Lock()
			defer mu.Unlock()
			names[path] = name
			return err
		})
	}
	return names, group.Wait()
}

// nodeName returns the name of a device's node. It includes a hash of the record, so that the record of an interrupted
// process is not mistaken for that of the attached device.
func nodeName(prefix string, record []byte) string {
	h := fnv.New64a()
	h.Write(record) // never fails
	return fmt.Sprintf("%s-%016x", prefix, h.Sum64())
}
