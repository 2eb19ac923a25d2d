package hostmount_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/ext4"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
)

// file is an io.WriteSeeker in memory.
type file struct {
	b  []byte
	at int64
}

func (f *file) Write(p []byte) (int, error) {
	if need := int(f.at) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	n := copy(f.b[f.at:], p)
	f.at += int64(n)
	return n, nil
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case 1:
		off += f.at
	case 2:
		off += int64(len(f.b))
	}
	f.at = off
	return off, nil
}

func TestDetect(t *testing.T) {
	var image file
	if _, err := ext4.WriteLayer(t.Context(), &image, bytes.NewReader(treetest.Tar(t)), layertree.Options{}); err != nil {
		t.Fatal(err)
	}
	erofs := make([]byte, 4096)
	copy(erofs[1024:], "\xe2\xe1\xf5\xe0")
	for _, c := range []struct {
		name   string
		b      []byte
		offset int64
		want   string
		text   string
	}{
		{"ext4", image.b, 0, "ext4", ""},
		{"erofs", erofs, 0, "erofs", ""},
		{"in a partition", append(make([]byte, 512), erofs...), 512, "erofs", ""},
		{"empty", nil, 0, "", "empty"},
		{"beyond the end", erofs, 1 << 20, "", "empty"},
		{"zeroes", make([]byte, 4096), 0, "", "no file system"},
		{"short", erofs[:1025], 0, "", "no file system"},
		{"VHDX", []byte("vhdxfile"), 0, "", "VHDX"},
		{"qcow2", []byte("QFI\xfb...."), 0, "", "qcow2"},
		{"XFS", []byte("XFSB"), 0, "", "XFS"},
		{"squashfs", []byte("hsqs"), 0, "", "squashfs"},
	} {
		got, err := hostmount.Detect(bytes.NewReader(c.b), c.offset)
		if got != c.want || (c.want == "") != errors.Is(err, hostmount.ErrNoFilesystem) ||
			(err != nil && !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: got %q, %v; want %q, %q", c.name, got, err, c.want, c.text)
		}
	}
}

// TestProbe: the guest also mounts what the host does not.
func TestProbe(t *testing.T) {
	at := func(offset int, magic string) []byte {
		b := make([]byte, 2048)
		copy(b[offset:], magic)
		return b
	}
	for want, b := range map[string][]byte{"erofs": at(1024, "\xe2\xe1\xf5\xe0"), "ext4": at(1080, "\x53\xef"),
		"xfs": at(0, "XFSB"), "squashfs": at(0, "hsqs"), "": at(0, "vhdxfile")} {
		for _, offset := range []int{0, 512} {
			got, err := hostmount.Probe(bytes.NewReader(append(make([]byte, offset), b...)), int64(offset))
			if err != nil || got != want {
				t.Errorf("at %d: %q, %v; want %q", offset, got, err, want)
			}
		}
	}
}
