package qemu

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

const (
	vhdFooter  = vhd.FooterSize
	sectorSize = 512
)

// blockNode is a block device of QEMU, in the form of blockdev-add. Keys are QEMU's.
type blockNode map[string]any

// diskNode makes the node that a disk reads and writes, called name. dir is where descriptors of
// composite disks go; the files made there are removed by removeDescriptor.
func diskNode(d vmm.SCSIDisk, name, dir string) (blockNode, error) {
	if d.Extents != nil {
		return compositeNode(d, name, dir)
	}
	switch d.Kind {
	case "", vmm.VirtualDisk, vmm.PassThru:
	default:
		return nil, fmt.Errorf("%s: a QEMU host has no disks of kind %s: %w", d.Path, d.Kind, errors.ErrUnsupported)
	}
	format := formatOf(d.Path, d.Format)
	isDevice, size, err := inspect(d.Path, format)
	if err != nil {
		return nil, err
	}
	if d.Kind == vmm.PassThru && !isDevice {
		return nil, fmt.Errorf("%s: is no block device, which a pass-through disk has to be", d.Path)
	}
	protocol := blockNode{"driver": "file", "filename": d.Path, "node-name": "f" + name}
	if isDevice {
		protocol["driver"] = "host_device"
	}
	node := blockNode{"driver": "raw", "node-name": name, "file": protocol}
	switch format {
	case vmm.FormatVHDX:
		node["driver"] = "vhdx"
	case vmm.FormatVHD:
		node["size"] = size // without the footer
	}
	for _, n := range []blockNode{node, protocol} {
		n["read-only"] = d.ReadOnly
		if d.ReadOnly {
			// Otherwise QEMU would lock the file, and a second VM could not read it at the same time.
			n["force-share"] = true
			n["auto-read-only"] = false
		} else {
			n["discard"] = "unmap"
		}
	}
	return node, nil
}

// formatOf is the format of a disk, told by the name where it is not given.
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

// checkPath refuses what QEMU could not be given, or would understand as something else than a file.
func checkPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q: give an absolute path", path)
	case !utf8.ValidString(path):
		return fmt.Errorf("%q: QEMU takes paths in UTF-8 only; rename it", path)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("%q: a path cannot hold a zero byte", path)
	case strings.HasPrefix(filepath.Clean(path), "/dev/fdset"):
		return fmt.Errorf("%q: is no file but a descriptor of QEMU", path)
	}
	return nil
}

// inspect looks at the file behind a disk and gives the size of its content.
func inspect(path string, format vmm.DiskFormat) (isDevice bool, size int64, err error) {
	if err := checkPath(path); err != nil {
		return false, 0, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return false, 0, accessError(err)
	}
	// Opening a pipe or a socket would hang QEMU, not only us.
	isDevice = fi.Mode()&fs.ModeDevice != 0 && fi.Mode()&fs.ModeCharDevice == 0
	switch {
	case isDevice && format != vmm.FormatRaw:
		return false, 0, fmt.Errorf("%s: is a block device, not a %s file", path, format)
	case isDevice:
		return true, 0, nil
	case !fi.Mode().IsRegular():
		return false, 0, fmt.Errorf("%s: is a %s, not a disk image", path, fi.Mode().Type())
	case fi.Size() == 0:
		return false, 0, fmt.Errorf("%s: the file is empty", path)
	case format == vmm.FormatRaw:
		return false, fi.Size(), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, 0, accessError(err)
	}
	defer f.Close()
	if size, err = contentSize(f, fi.Size(), format); err != nil {
		return false, 0, fmt.Errorf("%s: %w", path, err)
	}
	return false, size, nil
}

// contentSize reads the headers of a VHD or VHDX. QEMU would refuse what is neither, but says little.
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

// compositeNode writes a VMDK descriptor whose extents are links to the files, so that their names
// may be as long and strange as they like. Zeroes come from a file with a hole.
func compositeNode(d vmm.SCSIDisk, name, dir string) (_ blockNode, err error) {
	if !d.ReadOnly {
		return nil, fmt.Errorf("%s: a disk of extents is read-only", d.Path)
	}
	if len(d.Extents) == 0 {
		return nil, fmt.Errorf("%s: a disk of extents needs at least one", d.Path)
	}
	if err := removeDescriptor(dir, name); err != nil { // of a process that died before it opened it
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeDescriptor(dir, name))
		}
	}()
	var text strings.Builder
	// No empty line: QEMU reads past one into the next line, and takes the extent there twice.
	text.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n")
	links := map[string]string{}
	var zeroes int64
	for i, e := range d.Extents {
		if e.Length <= 0 || e.Offset < 0 || e.Length%sectorSize != 0 || e.Offset%sectorSize != 0 {
			return nil, fmt.Errorf("%s: extent %d (%d bytes at %d): lengths and offsets are multiples of %d bytes",
				d.Path, i, e.Length, e.Offset, sectorSize)
		}
		link := name + ".zero"
		if e.Path == "" {
			zeroes = max(zeroes, e.Length)
		} else {
			isDevice, size, err := inspect(e.Path, vmm.FormatRaw)
			if err != nil {
				return nil, fmt.Errorf("%s: extent %d: %w", d.Path, i, err)
			}
			if !isDevice && (e.Offset > size || e.Length > size-e.Offset) {
				return nil, fmt.Errorf("%s: extent %d ends at byte %d, but %s has only %d: is it truncated?",
					d.Path, i, e.Offset+e.Length, e.Path, size)
			}
			if link = links[e.Path]; link == "" {
				link = fmt.Sprintf("%s.%d", name, len(links))
				links[e.Path] = link
				if err := os.Symlink(e.Path, filepath.Join(dir, link)); err != nil {
					return nil, err
				}
			}
		}
		offset := e.Offset
		if e.Path == "" {
			offset = 0
		}
		fmt.Fprintf(&text, "RW %d FLAT \"%s\" %d\n", e.Length/sectorSize, link, offset/sectorSize)
	}
	if zeroes > 0 {
		zero := filepath.Join(dir, name+".zero")
		if err := os.WriteFile(zero, nil, 0o600); err != nil {
			return nil, err
		}
		if err := os.Truncate(zero, zeroes); err != nil {
			return nil, err
		}
	}
	descriptor := filepath.Join(dir, name+".vmdk")
	if err := os.WriteFile(descriptor, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	node := blockNode{"driver": "vmdk", "node-name": name, "read-only": true, "auto-read-only": false, "force-share": true}
	node["file"] = blockNode{"driver": "file", "filename": descriptor, "node-name": "f" + name,
		"read-only": true, "auto-read-only": false, "force-share": true}
	return node, nil
}

// removeDescriptor takes away what compositeNode made. Nothing there is no error.
func removeDescriptor(dir, name string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+".") {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// nodeName names the node of a device. What the device is goes into it, so that a record that an
// interrupted process left behind is not taken for the device that is there.
func nodeName(prefix string, record []byte) string {
	h := fnv.New64a()
	h.Write(record) // never fails
	return fmt.Sprintf("%s-%016x", prefix, h.Sum64())
}
