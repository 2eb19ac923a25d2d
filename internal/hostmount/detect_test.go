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
	} {
		got, err := hostmount.Detect(bytes.NewReader(c.b), c.offset)
		if got != c.want || (c.want == "") != errors.Is(err, hostmount.ErrNoFilesystem) || (err != nil && !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: got %q, %v; want %q, %q", c.name, got, err, c.want, c.text)
		}
	}
}
