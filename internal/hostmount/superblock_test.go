package hostmount_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/hostmount"
)

// TestCheckSuperblock: what a foreign superblock asks for and no mount option overrides.
func TestCheckSuperblock(t *testing.T) {
	const at = 512 // of the file system in the file
	put32 := func(place int, v uint32) func([]byte) {
		return func(sb []byte) { binary.LittleEndian.PutUint32(sb[place:], v) }
	}
	for _, tc := range []struct {
		name, fstype string
		readOnly     bool
		change       func(sb []byte)
		want         string // "" : accepted
	}{
		{"ext4", "ext4", false, nil, ""},
		{"journal device", "ext4", false, put32(0xe4, 0x800), "device with the number 0x800"},
		{"journal device, read-only", "ext4", true, put32(0xe4, 0x800), "device with the number 0x800"},
		{"journal nowhere", "ext4", false, put32(0xe0, 0), "a journal that is not on it"},
		{"no journal", "ext4", false, func(sb []byte) { put32(0xe0, 0)(sb); put32(0x5c, 0)(sb) }, ""},
		{"options", "ext4", true, func(sb []byte) { copy(sb[0x200:], "errors=panic") }, `"errors=panic"`},
		{"options to the end", "ext4", true, func(sb []byte) { copy(sb[0x200:], strings.Repeat("a", 64)) }, "aaa"},
		{"panic by the usual field", "ext4", false, func(sb []byte) { sb[0x3c] = 3 }, ""}, // an option overrides it
		{"multiple mount protection", "ext4", false, put32(0x60, 0x100), "mmp"},
		{"multiple mount protection, read-only", "ext4", true, put32(0x60, 0x100), ""},
		{"erofs", "erofs", true, func(sb []byte) { clear(sb) }, ""},
		{"erofs on two devices", "erofs", true, func(sb []byte) { sb[86] = 1 }, "1 other devices"},
		{"xfs", "xfs", false, put32(0xe4, 0x800), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image := make([]byte, at+2048)
			sb := image[at+1024:]
			put32(0x5c, 4)(sb)
			put32(0xe0, 8)(sb)
			if tc.change != nil {
				tc.change(sb)
			}
			if tc.fstype == "erofs" && tc.want == "" {
				clear(sb)
			}
			err := hostmount.CheckSuperblock(tc.fstype, strings.NewReader(string(image)), at, tc.readOnly)
			if (err == nil) != (tc.want == "") || err != nil &&
				(!errors.Is(err, hostmount.ErrSuperblock) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestMountOptions(t *testing.T) {
	for _, readOnly := range []bool{true, false} {
		o := hostmount.MountOptions("ext4", readOnly)
		if !slices.Contains(o, "errors=remount-ro") || slices.Contains(o, "noload") != readOnly {
			t.Errorf("ext4, read-only %v: %v", readOnly, o)
		}
	}
}
