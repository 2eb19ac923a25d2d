package mounts

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// The device mapper is controlled by ioctls on its control node, each with a header of 312 bytes followed by targets.
const (
	dmHeader    = 312
	dmTarget    = 40
	dmCreate    = 0xc138fd03
	dmRemove    = 0xc138fd04
	dmSuspend   = 0xc138fd06 // without the flag: resume
	dmTableLoad = 0xc138fd09
	dmReadOnly  = 1 << 0
	sector      = 512
)

func dmIoctl(request uintptr, name string, flags uint32, target []byte) (dev uint64, err error) {
	if len(name) >= 128 {
		return 0, fmt.Errorf("device-mapper name %q is too long: %w", name, gcsserver.ErrInvalid)
	}
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("the guest's kernel has no device mapper: %w: %w", gcsserver.ErrUnsupported, err)
	}
	defer f.Close()
	buf := make([]byte, max(dmHeader+len(target), 4096))
	le := binary.LittleEndian
	le.PutUint32(buf[0:], 4) // interface version 4.0.0
	le.PutUint32(buf[12:], uint32(len(buf)))
	le.PutUint32(buf[16:], dmHeader)
	if target != nil {
		le.PutUint32(buf[20:], 1)
	}
	le.PutUint32(buf[28:], flags)
	copy(buf[48:], name)
	copy(buf[dmHeader:], target)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&buf[0])))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return 0, errno
	}
	return le.Uint64(buf[40:]), nil
}

// dmMake creates a read-only mapped device with one target and returns its node.
func (t *Table) dmMake(name, kind string, bytes uint64, params string, m *mounted) (string, error) {
	dev, err := dmIoctl(dmCreate, name, dmReadOnly, nil)
	if err != nil {
		return "", fmt.Errorf("make the mapped device %s: %w", name, err)
	}
	remove := func() error {
		if _, err := dmIoctl(dmRemove, name, 0, nil); err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("remove the mapped device %s: %w", name, err)
		}
		return nil
	}
	_, err = dmIoctl(dmTableLoad, name, dmReadOnly, dmTargetSpec(kind, bytes/sector, params))
	if err == nil {
		_, err = dmIoctl(dmSuspend, name, dmReadOnly, nil)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("set up the mapped device %s (%s %s): %w", name, kind, params, err), remove())
	}
	m.undo = append([]func() error{remove}, m.undo...) // removed in reverse order
	return fmt.Sprintf("%s/dm-%d", t.devices.Dev, unix.Minor(dev)), nil
}

func dmTargetSpec(kind string, sectors uint64, params string) []byte {
	var b bytes.Buffer
	var head [dmTarget]byte
	size := (dmTarget + len(params) + 1 + 7) &^ 7
	le := binary.LittleEndian
	le.PutUint64(head[8:], sectors)
	le.PutUint32(head[20:], uint32(size))
	copy(head[24:], kind)
	b.Write(head[:])
	b.WriteString(params)
	b.Write(make([]byte, size-b.Len()))
	return b.Bytes()
}

// linear creates a mapped device for a range of another device. offset and size are in bytes, multiples of sector.
func (t *Table) linear(name, device string, offset, size uint64, m *mounted) (string, error) {
	whole, err := sizeOf(device)
	if err != nil {
		return "", err
	}
	if size == 0 || size%sector != 0 || offset%sector != 0 || offset > uint64(whole) || size > uint64(whole)-offset {
		return "", fmt.Errorf("window of %d bytes at %d of a device of %d bytes: %w", size, offset, whole,
			gcsserver.ErrInvalid)
	}
	t.load("dm-mod")
	t.load("dm-verity") // depends on the device mapper, if that is a module
	return t.dmMake(name, "linear", size, fmt.Sprintf("%s %d", device, offset/sector), m)
}

// verity creates a dm-verity device, whose reads are verified against a root digest.
func (t *Table) verity(name, device string, v hcsschema.DeviceVerityInfo, m *mounted) (string, error) {
	params, err := verityParams(device, v)
	if err != nil {
		return "", err
	}
	t.load("dm-verity")
	return t.dmMake(name, "verity", uint64(v.Ext4SizeInBytes), params, m)
}

// verityParams returns the parameters of the verity target. Data and hash tree are on the same device, the tree after
// the data and the superblock, if there is one.
func verityParams(device string, v hcsschema.DeviceVerityInfo) (string, error) {
	if v.Version == 0 {
		v.Version = 1
	}
	if v.Algorithm == "" {
		v.Algorithm = "sha256"
	}
	if v.BlockSize == 0 {
		v.BlockSize = 4096
	}
	salt := v.Salt
	if salt == "" {
		salt = "-"
	} else if _, err := hex.DecodeString(salt); err != nil {
		return "", fmt.Errorf("verity salt: %w: %w", gcsserver.ErrInvalid, err)
	}
	if _, err := hex.DecodeString(v.RootDigest); err != nil || v.RootDigest == "" {
		return "", fmt.Errorf("verity root digest %q is not in hex: %w", v.RootDigest, gcsserver.ErrInvalid)
	}
	bs := int64(v.BlockSize)
	if v.Version < 0 || v.Version > 1 || bs < sector || bs > math.MaxUint16+1 || bs&(bs-1) != 0 ||
		v.Ext4SizeInBytes <= 0 || v.Ext4SizeInBytes%bs != 0 {
		return "", fmt.Errorf("verity version %d, %d bytes in blocks of %d: %w", v.Version, v.Ext4SizeInBytes, bs,
			gcsserver.ErrInvalid)
	}
	for _, c := range v.Algorithm {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return "", fmt.Errorf("verity algorithm %q: %w", v.Algorithm, gcsserver.ErrInvalid)
		}
	}
	blocks := v.Ext4SizeInBytes / bs
	tree := blocks
	if v.SuperBlock {
		tree++
	}
	return fmt.Sprintf("%d %s %s %d %d %d %d %s %s %s", v.Version, device, device, bs, bs, blocks, tree,
		v.Algorithm, v.RootDigest, salt), nil
}
