package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// checkDevice returns an error if a device is not supported here. It is called before anything is recorded.
func checkDevice(d vmm.Device) error {
	switch d := d.(type) {
	case vmm.NIC:
		if d.Slot >= nics {
			return fmt.Errorf("%s: there are %d slots", d.Addr(), nics)
		}
		return vmm.CheckPorts(d.Ports)
	case vmm.SCSIDisk:
		_, _, err := diskSize(d)
		return err
	case vmm.Plan9Share:
		if len(d.AllowedFiles) > 0 {
			return fmt.Errorf("share %q: a choice of files: %w without a virtual machine", d.Name, errors.ErrUnsupported)
		}
		st, err := os.Stat(d.Path)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fmt.Errorf("share %q: %s is no folder", d.Name, d.Path)
		}
		return nil
	}
	return fmt.Errorf("%s: %w without a virtual machine", d, errors.ErrUnsupported)
}

// diskSize returns the path of a disk's file, with symbolic links resolved, and the size of the disk.
func diskSize(d vmm.SCSIDisk) (path string, size int64, err error) {
	fail := func(err error) (string, int64, error) { return "", 0, fmt.Errorf("disk %s: %w", d.Path, err) }
	if len(d.Extents) > 0 || (d.Kind != "" && d.Kind != vmm.VirtualDisk) {
		return fail(fmt.Errorf("composite, physical and extensible disks: %w without a virtual machine",
			errors.ErrUnsupported))
	}
	if path, err = filepath.EvalSymlinks(d.Path); err != nil {
		return fail(err)
	}
	f, size, err := regfile.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close() // it was only read
	format := d.Format
	if format == vmm.FormatByName {
		switch strings.ToLower(filepath.Ext(path)) {
		case ".vhd":
			format = vmm.FormatVHD
		case ".vhdx":
			format = vmm.FormatVHDX
		}
	}
	switch format {
	case vmm.FormatVHDX:
		return fail(fmt.Errorf("%w: Linux cannot open a VHDX by itself: use a folder or a raw file with ext4 as "+
			"scratch, or a virtual machine", errors.ErrUnsupported))
	case vmm.FormatVHD:
		footer, err := vhd.Validate(f, size)
		if err != nil {
			return fail(err)
		}
		return path, footer.Size, nil
	}
	return path, size, nil
}

func (m *Machine) mountDisk(ctx context.Context, g vmm.MappedDisk, target string) error {
	if g.Verity != nil || g.Encrypted || g.BlockDev {
		return fmt.Errorf("dm-verity, encryption and bare block devices: %w without a virtual machine", errors.ErrUnsupported)
	}
	c, err := m.record(devicesDir, vmm.RestsOn(g))
	if err != nil {
		return err
	}
	d, ok := c.Device.(vmm.SCSIDisk)
	if !ok {
		return fmt.Errorf("there is no disk at %s", vmm.RestsOn(g))
	}
	path, size, err := diskSize(d)
	if err != nil {
		return err
	}
	im := hostmount.Image{Path: path, Size: size, ReadOnly: d.ReadOnly || g.ReadOnly, Filesystem: g.Filesystem,
		Options: g.Options}
	if g.Partition != 0 {
		if im.Offset, im.Size, err = partition(path, size, g.Partition); err != nil {
			return err
		}
	}
	if g.EnsureFilesystem {
		if err := checkFilesystem(im, g.Filesystem); err != nil {
			return err
		}
		im.Filesystem = ""
	}
	return m.mount.MountImage(ctx, im, target)
}

// checkFilesystem returns an error unless a disk has the wanted file system. It never formats a disk, unlike the guest
// of a VM: the creator of a scratch does that.
func checkFilesystem(im hostmount.Image, want string) error {
	f, _, err := regfile.Open(im.Path)
	if err != nil {
		return err
	}
	defer f.Close() // it was only read
	got, err := hostmount.Detect(f, im.Offset)
	if err != nil || (want != "" && got != want) {
		return fmt.Errorf("%s is to have a file system %s, and has %q: format it first (mkfs.ext4 -b 4096), or use a "+
			"folder as scratch: %w",
			im.Path, want, got, errors.Join(err, hostmount.ErrNoFilesystem))
	}
	return nil
}

func partition(path string, size int64, number uint64) (offset, length int64, err error) {
	f, _, err := regfile.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close() // it was only read
	parts, err := gpt.Read(f, size)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	if number > uint64(len(parts)) {
		return 0, 0, fmt.Errorf("%s has %d partitions, not %d", path, len(parts), number)
	}
	p := parts[number-1]
	return p.Offset, p.Size, nil
}
