package layertree

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// ACLs by their attribute names.
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

const capability = "security.capability"

// xattrNamespaces are the name spaces of attributes that file systems of layers can hold.
var xattrNamespaces = [...]string{"user.", "trusted.", "security."}

// xattrs sets the extended attributes from PAX records: those of star, GNU tar and Go (SCHILY.xattr), and GNU tar's own
// records (ACLs as text, SELinux labels).
func (rd *reader) xattrs(n *Node, records map[string]string) error {
	for key, value := range records {
		name, value, err := xattrRecord(records, key, value)
		if err != nil {
			return fmt.Errorf("record %s: %w", quote(key), err)
		}
		if name == "" {
			continue
		}
		value, keep, err := checkXattr(n.Type(), name, value)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", quote(name), err)
		}
		if !keep {
			continue
		}
		if err := rd.account(0, len(name)+len(value)+xattrCost); err != nil {
			return err
		}
		n.SetXattr(name, value)
	}
	return nil
}

// xattrRecord returns the attribute that a PAX record stands for; without one the name is empty.
func xattrRecord(records map[string]string, key, value string) (name, out string, err error) {
	if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
		return name, value, nil
	}
	switch key {
	case "RHT.security.selinux":
		name = "security.selinux"
	case "SCHILY.acl.access":
		name = AccessACL
	case "SCHILY.acl.default":
		name = DefaultACL
	default:
		return "", "", nil
	}
	if _, twice := records["SCHILY.xattr."+name]; twice {
		return "", "", nil
	}
	if name == AccessACL || name == DefaultACL {
		value, err = aclFromText(value)
	}
	return name, value, err
}

// checkXattr decides, for all formats, whether an attribute of a file is kept, and with which value. One that Linux
// does not allow on a file of the type, such as user.* on anything but regular files and directories, is dropped; a
// value that Linux would refuse is an error.
func checkXattr(typ uint32, name, value string) (out string, keep bool, err error) {
	if !possibleXattr(typ, name, value) {
		return "", false, nil
	}
	if len(name) > maxName || len(value) > maxXattr {
		return "", false, fmt.Errorf("it has %d bytes; at most %d are possible: %w", len(value), maxXattr, ErrInvalid)
	}
	if strings.ContainsRune(name, 0) {
		return "", false, fmt.Errorf("a NUL character in the name: %w", ErrInvalid)
	}
	switch name {
	case AccessACL, DefaultACL:
		return value, len(value) > aclHeader, checkACL(value)
	case capability:
		value, err = checkCapability(value)
		return value, true, err
	}
	return value, true, nil
}

// possibleXattr reports whether a file of a type can have an attribute.
func possibleXattr(typ uint32, name, value string) bool {
	switch {
	case name == AccessACL:
		return typ != TypeSymlink
	case name == DefaultACL:
		return typ == TypeDir
	case name == OpaqueXattr:
		return typ == TypeDir && value == "y"
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user.") && typ != TypeRegular && typ != TypeDir:
		return false
	}
	for _, space := range xattrNamespaces {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return true
		}
	}
	return false
}

// checkCapability returns an error unless a value is a valid file capability. It converts version 1, which Linux does
// not accept any more, to version 2.
func checkCapability(v string) (string, error) {
	const revisionMask, v1, v2, v3 = 0xff000000, 0x01000000, 0x02000000, 0x03000000
	if len(v) >= 4 {
		magic := binary.LittleEndian.Uint32([]byte(v))
		switch revision := magic & revisionMask; {
		case revision == v1 && len(v) == 12:
			b := binary.LittleEndian.AppendUint32(nil, magic&^revisionMask|v2)
			return string(append(append(b, v[4:]...), make([]byte, 8)...)), nil
		case revision == v2 && len(v) == 20, revision == v3 && len(v) == 24:
			return v, nil
		}
	}
	return "", fmt.Errorf("%d bytes are no file capabilities: %w", len(v), ErrInvalid)
}
