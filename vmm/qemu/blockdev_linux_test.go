package qemu

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/vmm"
)

func TestBlockNodes(t *testing.T) {
	dir := t.TempDir()
	size := int64(1 << 20)
	path := filepath.Join(dir, "a,b=\"c\".vhd")
	footer, err := vhd.NewFooter(size)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(make([]byte, size), footer.Marshal()...), 0o600); err != nil {
		t.Fatal(err)
	}
	var modes []int
	lent := func(f *os.File) (string, error) {
		mode, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		modes = append(modes, mode&unix.O_ACCMODE)
		fi, statErr := f.Stat()
		want, wantErr := os.Stat(path)
		if err := errors.Join(err, statErr, wantErr); err != nil || !os.SameFile(fi, want) {
			t.Errorf("another file is lent: %v", err)
		}
		return "/dev/fdset/7", nil
	}
	node, err := diskNode(vmm.SCSIDisk{Path: path, ReadOnly: true}, "n", lent)
	if err != nil {
		t.Fatal(err)
	}
	file := node["file"].(blockNode)
	for _, n := range []blockNode{node, file} {
		if n["read-only"] != true || n["force-share"] != true || n["auto-read-only"] != false {
			t.Errorf("a read-only layer is opened with %v", n)
		}
	}
	if node["driver"] != "raw" || node["size"] != size || file["filename"] != "/dev/fdset/7" {
		t.Errorf("a fixed VHD is opened with %v", node)
	}
	node, err = diskNode(vmm.SCSIDisk{Path: path}, "n", lent)
	if err != nil || node["force-share"] != nil || node["read-only"] != false {
		t.Errorf("a writable disk is opened with %v %v", node, err)
	}
	if want := []int{unix.O_RDONLY, unix.O_RDWR}; !slices.Equal(modes, want) {
		t.Errorf("the file is lent with modes %v, want %v", modes, want)
	}
}

func TestCompositeDescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a\"\n.raw")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{{Path: path, Offset: 512, Length: 1024}, {Length: 512},
		{Path: path, Length: 4096}}}
	var lent []*os.File
	var mu sync.Mutex
	defer func() {
		for _, f := range lent {
			f.Close()
		}
	}()
	keep := func(f *os.File) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		same, err := duplicate(f)
		lent = append(lent, same)
		name := "/dev/fdset/" + filepath.Base(f.Name())
		if f.Name() == path {
			name = "/dev/fdset/a"
		}
		return name, err
	}
	node, err := diskNode(d, "n", keep)
	if err != nil {
		t.Fatal(err)
	}
	if len(lent) != 3 || node["file"].(blockNode)["filename"] != "/dev/fdset/n" {
		t.Fatalf("%d files are lent for %v, want the file, the zeroes and the descriptor", len(lent), node)
	}
	b, err := io.ReadAll(io.NewSectionReader(lent[2], 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	want := "RW 2 FLAT \"/dev/fdset/a\" 1\nRW 1 FLAT \"/dev/fdset/zeroes\" 0\nRW 8 FLAT \"/dev/fdset/a\" 0\n"
	if !strings.HasSuffix(string(b), "Flat\"\n"+want) {
		t.Errorf("descriptor:\n%s", b)
	}
	d.Extents = append(d.Extents, vmm.Extent{Path: path + "x", Length: 512})
	if _, err := diskNode(d, "n", keep); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
