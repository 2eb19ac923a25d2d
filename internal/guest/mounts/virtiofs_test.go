//go:build linux

package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// TestMountedRoot forgets the containers of a root that is a share or a disk, and its directory, with the mount. There
// is no device here: a file system in memory stands for it.
func TestMountedRoot(t *testing.T) {
	r := testRuntime(t)
	root := r.base + "/gcs/c/whole/rootfs"
	config := gcs.ContainerConfig{OciSpecification: &specs.Spec{Root: &specs.Root{Path: root}}}
	share := hcsschema.LCOWVirtioFS{MountPath: root, Tag: "strata0"}
	disk := hcsschema.LCOWMappedVirtualDisk{MountPath: root, Lun: 1}
	for _, tt := range []struct {
		kind        hcsschema.ResourceType
		what        gcs.Mount
		this, other any
	}{
		{hcsschema.ResourceVirtioFS, gcs.Mount{Kind: "virtiofs", Share: "strata0"}, share,
			hcsschema.LCOWVirtioFS{MountPath: root, Tag: "strata1"}},
		{hcsschema.ResourceMappedVirtualDisk, gcs.Mount{Kind: "scsi", Lun: 1}, disk,
			hcsschema.LCOWMappedVirtualDisk{MountPath: root, Lun: 2}},
	} {
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		r.note(root, mounted{settings: tt.this, what: tt.what})
		if err := r.Create(t.Context(), "whole", config); err != nil {
			t.Fatalf("%s: the container of the root before is not forgotten: %v", tt.kind, err)
		}
		r.must(t, "Remove", tt.kind, tt.other)
		if err := r.Create(t.Context(), "whole", config); !errors.Is(err, gcsserver.ErrContainer) {
			t.Errorf("%s: the removal of another one at the place of the root: %v, want the container to be there",
				tt.kind, err)
		}
		r.must(t, "Remove", tt.kind, tt.this)
		if _, err := os.Stat(filepath.Dir(root)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the container's directory is still there: %v", tt.kind, err)
		}
	}
	if err := r.Create(t.Context(), "whole", config); err != nil {
		t.Errorf("the container is not forgotten: %v", err)
	}
}
