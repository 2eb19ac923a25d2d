package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// erofs is a layer as containerd hands it over.
func erofs(file string, options ...string) *types.Mount {
	return &types.Mount{Type: "erofs", Source: file, Options: append([]string{"ro", "loop"}, options...)}
}

func combined(options ...string) *types.Mount {
	return &types.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options}
}

var (
	writable = &types.Mount{Type: "ext4", Source: "/s/9/rwlayer.img", Options: []string{"rw", "loop"}}
	top      = erofs("/s/2/layer.erofs")
	base     = erofs("/s/1/layer.erofs")
)

// onDisk are the options of an overlay whose upper directory is on the first disk.
func onDisk(more ...string) []string {
	return append([]string{
		"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
		"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"}, more...)
}

func TestDisks(t *testing.T) {
	both := []layers.Layer{{File: "/s/2/layer.erofs"}, {File: "/s/1/layer.erofs"}}
	for _, tt := range []struct {
		name   string
		mounts []*types.Mount
		want   layers.Request
	}{
		{"erofs with default_size", []*types.Mount{writable, top, base, combined(onDisk("lowerdir={{ overlay 1 2 }}")...)},
			layers.Request{Layers: both, Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"each layer by its name", []*types.Mount{writable, top, base,
			combined(onDisk("lowerdir={{ mount 1 }}:{{ mount 2 }}", "index=off")...)},
			layers.Request{Layers: both, Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"from the other end", []*types.Mount{writable, base, top, combined(onDisk("lowerdir={{ overlay 2 1 }}")...)},
			layers.Request{Layers: both, Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"one layer", []*types.Mount{writable, base, combined(onDisk("lowerdir={{ mount 1 }}")...)},
			layers.Request{Layers: both[1:], Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"erofs without default_size", []*types.Mount{top, base,
			combined("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir={{ overlay 0 1 }}")},
			layers.Request{Layers: both, Scratch: filepath.Join("/s/9", "work", "strata")}},
		{"read only", []*types.Mount{top, base, combined("lowerdir={{ overlay 0 1 }}")}, layers.Request{Layers: both}},
		{"read only, said so", []*types.Mount{top, base, combined("ro", "lowerdir={{ overlay 0 1 }}")},
			layers.Request{Layers: both}},
		{"one layer, read only", []*types.Mount{base, {Type: "format/bind", Source: "{{ mount 0 }}",
			Options: []string{"ro", "rbind"}}}, layers.Request{Layers: both[1:]}},
		{"one layer alone", []*types.Mount{base}, layers.Request{Layers: both[1:]}},
		{"merged metadata: the layers that they name, bottom-most first", []*types.Mount{writable,
			erofs("/s/2/fsmeta.erofs", "device=/s/1/layer.erofs", "device=/s/2/layer.erofs"),
			combined(onDisk("lowerdir={{ mount 1 }}")...)},
			layers.Request{Layers: both, Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"one layer twice: the upper one hides the other", []*types.Mount{writable, top, base, top,
			combined(onDisk("lowerdir={{ overlay 1 3 }}")...)},
			layers.Request{Layers: both, Scratch: "/s/9/rwlayer.img", WholeScratch: true}},
		{"blockfile", []*types.Mount{{Type: "ext4", Source: "/s/2.img", Options: []string{"loop"}}},
			layers.Request{RootDisk: "/s/2.img"}},
		{"blockfile, read only", []*types.Mount{{Type: "ext4", Source: "/s/2.img", Options: []string{"loop", "ro"}}},
			layers.Request{Layers: []layers.Layer{{File: "/s/2.img"}}}},
	} {
		p, err := New(tt.mounts, "/b", "rootfs")
		if err != nil || len(p.Mounts) > 0 || p.Folder != "" {
			t.Errorf("%s: %+v, %v; want disks", tt.name, p, err)
			continue
		}
		tt.want.ID = "a"
		if r, err := p.Request(layers.Request{ID: "a"}); err != nil || !reflect.DeepEqual(r, tt.want) {
			t.Errorf("%s: request %+v, %v, want %+v", tt.name, r, err, tt.want)
		}
	}
}

func TestDisksRefused(t *testing.T) {
	overlay := func(options ...string) []*types.Mount {
		return []*types.Mount{writable, top, base, combined(options...)}
	}
	for _, tt := range []struct {
		mounts []*types.Mount
		want   string // in the error
	}{
		{overlay(onDisk()...), "no layers"},
		{overlay(onDisk("lowerdir={{ overlay 1 3 }}")...), "none of 3 disks"},
		{overlay(onDisk("lowerdir={{ overlay -1 2 }}")...), "none of 3 disks"},
		{overlay(onDisk("lowerdir={{ mount 99999999999999999999 }}")...), "none of 3 disks"},
		{overlay(onDisk("lowerdir={{ overlay 1 2 }}/sub")...), "not a whole disk"},
		{overlay(onDisk("lowerdir=/elsewhere")...), "not a whole disk"},
		{overlay(onDisk("lowerdir={{ mount 1")...), "not understood"},
		{overlay(onDisk("lowerdir={{ source 1 }}")...), "not understood"},
		{overlay(onDisk("lowerdir={{ mount 1 }}{{ mount 2 }}")...), "not understood"},
		{overlay(onDisk("lowerdir={{ }}")...), "not understood"},
		{overlay(onDisk("lowerdir={{ overlay 0 2 }}")...), "no EROFS"},
		{overlay(onDisk("lowerdir={{ overlay 1 2 }}", "userxattr")...), "userxattr"},
		{overlay(onDisk("lowerdir={{ overlay 1 2 }}", "uidmap=0:1000:1")...), "uidmap"},
		{overlay(onDisk("lowerdir={{ overlay 1 2 }}", "X-containerd.mkdir.path=/etc/x:0755")...), "/etc/x"},
		{overlay("upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 1 2 }}"), "workdir"},
		{overlay("upperdir={{ mount 0 }}/fs", "workdir={{ mount 0 }}/work", "lowerdir={{ overlay 1 2 }}"), "/fs"},
		{overlay("upperdir=/s/fs", "workdir={{ mount 0 }}/work", "lowerdir={{ overlay 1 2 }}"), "/s/fs"},
		{overlay("upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work", "lowerdir={{ mount 2 }}"), "written to"},
		{[]*types.Mount{{Type: "ext4", Source: "/s/img", Options: []string{"ro", "loop"}}, base,
			combined(onDisk("lowerdir={{ mount 1 }}")...)}, "written to"},
		{[]*types.Mount{writable, {Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper"}}, "format/mkdir/bind"},
		{[]*types.Mount{base, {Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind"}}}, "rbind"},
		{[]*types.Mount{base, {Type: "format/bind", Source: "/etc", Options: []string{"ro"}}}, "/etc"},
		{[]*types.Mount{base, {Type: "format/erofs", Source: "{{ mount 0 }}"}}, "format/erofs"},
		{[]*types.Mount{{Type: "zfs", Source: "/z"}, combined("lowerdir={{ mount 0 }}")}, "zfs"},
		{[]*types.Mount{erofs("layer"), combined("lowerdir={{ mount 0 }}")}, "absolute"},
		{[]*types.Mount{erofs("/l", "fsid=x")}, "fsid"},
		{[]*types.Mount{erofs("/l", "device=l")}, "device=l"},
		{[]*types.Mount{erofs("/l", "device=/d", "X-containerd.dmverity=/v")}, "hash tree"},
		{[]*types.Mount{{Type: "ext4", Source: "img", Options: []string{"loop"}}}, "absolute"},
	} {
		p, err := New(tt.mounts, "/b", "")
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %+v, %v, want an error that says %q", tt.mounts, p, err, tt.want)
		}
	}
}

// TestVerity takes a hash tree from containerd's record, and refuses one that is not that of the disk.
func TestVerity(t *testing.T) {
	dir := t.TempDir()
	file, record := filepath.Join(dir, "layer.erofs"), filepath.Join(dir, "layer.erofs.dmverity")
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.erofs", "--quiet", file, filepath.Join(dir, "src")).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("mkfs.erofs is needed: ", err)
		}
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	info, err := verity.Append(t.Context(), f, fi.Size())
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := New([]*types.Mount{erofs(file, "X-containerd.dmverity="+record)}, "/b", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		record string
		want   string // in the error
	}{
		{fmt.Sprintf(`{"roothash":"%s","hashoffset":%d}`, info.RootDigest, info.DataBytes), ""},
		{fmt.Sprintf(`{"roothash":"%s","hashoffset":%d}`, strings.Repeat("0", 64), info.DataBytes), "is not that of"},
		{fmt.Sprintf(`{"roothash":"%s","hashoffset":%d}`, info.RootDigest, 8192+info.DataBytes), "is not that of"},
		{"{", "the record of its hash tree"},
	} {
		if err := os.WriteFile(record, []byte(tt.record), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := p.Request(layers.Request{})
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %+v, %v, want an error that says %q", tt.record, r, err, tt.want)
			}
			continue
		}
		want := []layers.Layer{{File: file, Verity: &vmm.Verity{DataBytes: info.DataBytes, RootDigest: info.RootDigest,
			Salt: info.Salt, Algorithm: info.Algorithm, BlockSize: verity.BlockSize, SuperBlock: true}}}
		if err != nil || !reflect.DeepEqual(r.Layers, want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.record, r.Layers, err, want)
		}
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	if r, err := p.Request(layers.Request{}); err == nil {
		t.Errorf("without the record: %+v, want an error", r)
	}
}
