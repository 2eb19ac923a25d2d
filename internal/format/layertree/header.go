package layertree

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
	"time"
)

var nodeTypes = map[byte]uint32{
	tar.TypeReg: TypeRegular, 0: TypeRegular, tar.TypeCont: TypeRegular, tar.TypeGNUSparse: TypeRegular,
	tar.TypeSymlink: TypeSymlink, tar.TypeDir: TypeDir, tar.TypeChar: TypeChar, tar.TypeBlock: TypeBlock,
	tar.TypeFifo: TypeFifo,
}

// node makes the node of an entry, without its content.
func (rd *reader) node(h *tar.Header) (*Node, error) {
	typ, ok := nodeTypes[h.Typeflag]
	if !ok {
		return nil, fmt.Errorf("entries of type %q are unknown: %w", h.Typeflag, ErrInvalid)
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > maxID || int64(h.Gid) > maxID {
		return nil, fmt.Errorf("owner %d:%d is no valid id: %w", h.Uid, h.Gid, ErrInvalid)
	}
	n := &Node{Mode: typ | uint32(h.Mode&PermMask), UID: uint32(h.Uid), GID: uint32(h.Gid)}
	n.Sec, n.Nsec = seconds(h.ModTime)
	switch typ {
	case TypeDir:
		n.Nlink = 2
	case TypeSymlink:
		n.Mode |= 0o777 // permissions of a symbolic link have no meaning, and this is what Linux shows
		n.Target = h.Linkname
		if n.Target == "" || len(n.Target) > maxTarget || strings.ContainsRune(n.Target, 0) {
			return nil, fmt.Errorf("a symbolic link with a target of %d bytes; 1 to %d are possible, without NUL: %w", len(n.Target), maxTarget, ErrInvalid)
		}
	case TypeChar, TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return nil, fmt.Errorf("device %d:%d is no valid number: %w", h.Devmajor, h.Devminor, ErrInvalid)
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	return n, rd.xattrs(n, h.PAXRecords)
}

// seconds splits a time. Times that int64 nanoseconds cannot hold are fine here.
func seconds(t time.Time) (int64, uint32) {
	if t.IsZero() {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}

// xattrNamespaces are the name spaces of attributes that file systems of layers can hold.
var xattrNamespaces = [...]string{"user.", "trusted.", "security."}

// ACLs by their attribute names.
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

// xattrs takes the extended attributes out of the PAX records: as star, GNU tar and Go write them
// (SCHILY.xattr), and what GNU tar writes in records of its own (ACLs as text, SELinux labels).
func (rd *reader) xattrs(n *Node, records map[string]string) error {
	for key, value := range records {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case ok:
		case key == "RHT.security.selinux":
			if _, twice := records["SCHILY.xattr.security.selinux"]; twice {
				continue
			}
			name = "security.selinux"
		case key == "SCHILY.acl.access" || key == "SCHILY.acl.default":
			name = AccessACL
			if key == "SCHILY.acl.default" {
				name = DefaultACL
			}
			if _, twice := records["SCHILY.xattr."+name]; twice {
				continue
			}
			var err error
			if value, err = aclFromText(value); err != nil {
				return fmt.Errorf("record %s: %w", key, err)
			}
		default:
			continue
		}
		if !knownXattr(name, value) {
			continue
		}
		if len(name) > maxName || len(value) > maxXattr {
			return fmt.Errorf("attribute %s has %d bytes; at most %d are possible: %w", quote(name), len(value), maxXattr, ErrInvalid)
		}
		if strings.ContainsRune(name, 0) {
			return fmt.Errorf("attribute %s: a NUL character in the name: %w", quote(name), ErrInvalid)
		}
		if err := rd.account(0, len(name)+len(value)); err != nil {
			return err
		}
		n.SetXattr(name, value)
	}
	return nil
}

func knownXattr(name, value string) bool {
	if name == AccessACL || name == DefaultACL {
		return true
	}
	if name == OpaqueXattr {
		return value == "y"
	}
	if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
		return false
	}
	for _, space := range xattrNamespaces {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return true
		}
	}
	return false
}

// Seconds that ext4 inodes can hold; other file systems hold more.
const (
	MinSec = math.MinInt32
	MaxSec = 0x37fffffff
)
