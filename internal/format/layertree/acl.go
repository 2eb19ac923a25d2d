package layertree

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Tags of ACL entries, in the order in which an ACL lists them.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclVersion   = 2
	aclHeader    = 4
	aclUndefined = 0xffffffff
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// aclFromText converts the text form of a POSIX ACL, such as "user::rw-,user:1000:r--,group::r--,…", to the value of
// its attribute. A user or group name needs the numeric id in a fourth field, as star writes it: names have no meaning
// outside the system that packed the layer.
func aclFromText(text string) (string, error) {
	var entries []aclEntry
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		line, _, _ = strings.Cut(line, "\t") // "#effective:" comments
		e, err := parseACLEntry(line)
		if err != nil {
			return "", err
		}
		if entries = append(entries, e); len(entries) > 8000 {
			return "", fmt.Errorf("an ACL of more than 8000 entries: %w", ErrInvalid)
		}
	}
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(int64(a.id) - int64(b.id))
	})
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b), nil
}

// checkACL returns an error unless Linux accepts an ACL in the format of getxattr: complete, entries in order, with
// entries for owner, group and others, and a mask if there are entries for ids. An empty one means no ACL.
func checkACL(v string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("no POSIX ACL: %s: %w", fmt.Sprintf(format, args...), ErrInvalid)
	}
	b := []byte(v)
	if len(b) < aclHeader || (len(b)-aclHeader)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return bad("%d bytes are not of version %d", len(b), aclVersion)
	}
	var last, seen uint16
	for b = b[aclHeader:]; len(b) > 0; b = b[8:] {
		tag, perm, id := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		switch tag {
		case aclUser, aclGroup:
			if id == aclUndefined {
				return bad("an entry without an id")
			}
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			if seen&tag != 0 {
				return bad("an entry of type %#x comes twice", tag)
			}
		default:
			return bad("an entry of type %#x", tag)
		}
		if perm > 7 || tag < last {
			return bad("an entry of type %#x with permissions %#o after one of type %#x", tag, perm, last)
		}
		last = tag
		seen |= tag
	}
	const needed = aclUserObj | aclGroupObj | aclOther
	if seen != 0 && (seen&needed != needed || seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0) {
		return bad("entries are missing")
	}
	return nil
}

func parseACLEntry(line string) (aclEntry, error) {
	bad := func(why string) (aclEntry, error) {
		return aclEntry{}, fmt.Errorf("ACL entry %s: %s: %w", quote(line), why, ErrInvalid)
	}
	f := strings.Split(strings.TrimPrefix(line, "default:"), ":")
	if len(f) == 2 && (f[0] == "mask" || f[0] == "other" || f[0] == "m" || f[0] == "o") {
		f = []string{f[0], "", f[1]}
	}
	if len(f) < 3 || len(f) > 4 {
		return bad("it has not the form type:name:permissions")
	}
	e := aclEntry{id: aclUndefined}
	named := f[1] != ""
	switch f[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return bad("unknown type")
	}
	if e.tag == aclUser || e.tag == aclGroup {
		id := f[1]
		if len(f) == 4 {
			id = f[3]
		}
		if id == "root" {
			id = "0"
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil || n > maxID {
			return bad("it names no numeric id (pack the layer with --numeric-owner, or with --xattrs instead of --acls)")
		}
		e.id = uint32(n)
	}
	for _, c := range f[2] {
		switch c {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return bad("unknown permission")
		}
	}
	return e, nil
}
