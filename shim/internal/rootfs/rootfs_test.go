package rootfs

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/layers"
)

func TestPlan(t *testing.T) {
	overlay := &types.Mount{Type: "overlay", Source: "overlay",
		Options: []string{"index=off", "workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"}}
	for _, tt := range []struct {
		name   string
		mounts []*types.Mount
		root   string
		folder string
		count  int
	}{
		{"overlayfs", []*types.Mount{overlay}, "rootfs", "/b/rootfs", 1},
		{"native", []*types.Mount{{Type: "bind", Source: "/s/2", Options: []string{"rbind", "rw"}}}, "rootfs",
			"/b/rootfs", 1},
		{"blockfile with options", []*types.Mount{{Type: "ext4", Source: "/s/2.img", Options: []string{"loop", "noatime"}}},
			"", "/b/rootfs", 1},
		{"blockfile with xfs", []*types.Mount{{Type: "xfs", Source: "/s/2.img", Options: []string{"loop"}}}, "",
			"/b/rootfs", 1},
		{"several", []*types.Mount{overlay, overlay}, "", "/b/rootfs", 2},
		{"a folder, ctr run --rootfs", nil, "/srv/root", "/srv/root", 0},
		{"a folder of the bundle", nil, "other/", "/b/other", 0},
		{"nothing said", nil, "", "/b/rootfs", 0},
	} {
		p, err := New(tt.mounts, "/b", tt.root)
		if err != nil || p.Folder != tt.folder || len(p.Mounts) != tt.count {
			t.Errorf("%s: %+v, %v; want the folder %s and %d mounts", tt.name, p, err, tt.folder, tt.count)
			continue
		}
		want := layers.Request{ID: "a", RootFolder: tt.folder}
		if r, err := p.Request(layers.Request{ID: "a"}); err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%s: request %+v, %v", tt.name, r, err)
		}
		for i, m := range p.Mounts {
			if m.Type != tt.mounts[i].Type || !reflect.DeepEqual(m.Options, tt.mounts[i].Options) {
				t.Errorf("%s: mount %d is %+v, want %+v", tt.name, i, m, tt.mounts[i])
			}
		}
	}
}

func TestPlanRefused(t *testing.T) {
	for _, tt := range []struct {
		m    *types.Mount
		want string // in the error
	}{
		{&types.Mount{Type: "zfs", Source: "pool/a"}, "zfs"},
		{&types.Mount{Type: "", Source: "/s"}, "type"},
		{&types.Mount{Type: "bind", Source: "/s", Target: "sub"}, "sub"},
		{&types.Mount{Type: "overlay", Source: "overlay", Options: []string{"upperdir={{ mount 0 }}/upper"}},
			"mount manager"},
		{&types.Mount{Type: "overlay", Source: "overlay", Options: []string{"uidmap=0:1000:1"}}, "uidmap"},
	} {
		_, err := New([]*types.Mount{{Type: "bind", Source: "/ok"}, tt.m}, "/b", "")
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want an error that says %q", tt.m, err, tt.want)
		}
	}
}
