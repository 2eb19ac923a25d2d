package wclayer

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
)

const (
	sandboxVHDX = "sandbox.vhdx"
	sectorSize  = 512
	clusterSize = 4096 // of the NTFS volumes that the platform creates for scratches
)

// CreateScratch implements [Host].
func (s *System) CreateScratch(ctx context.Context, folder string, parents []string) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	if err := checkParents(parents); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{
		op: "CreateSandboxLayer", path: id,
		do: func(context.Context) error {
			desc, err := s.descriptors(parents)
			if err != nil {
				return err
			}
			return result("CreateSandboxLayer", id, s.api.CreateSandboxLayer(id, desc))
		},
		undo: func() error { return result("DestroyLayer", id, s.api.DestroyLayer(id)) },
	})
}

// ExpandScratch implements [Host].
func (s *System) ExpandScratch(ctx context.Context, folder string, size uint64) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("%w: scratch %s: size 0", ErrInvalid, folder)
	}
	id := spelled(folder)
	return s.run(ctx, call{op: "ExpandSandboxSize", path: id, do: func(context.Context) error {
		if err := result("ExpandSandboxSize", id, s.api.ExpandSandboxSize(id, size)); err != nil {
			return err
		}
		return s.growVolume(hostpath.Join(id, sandboxVHDX))
	}})
}

// growVolume grows the file system on a disk to the disk's size. The platform's ExpandSandboxSize does that too, but on
// some builds only up to 20 GB.
func (s *System) growVolume(file string) (err error) {
	disk, volume, err := s.attachVHD(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.detachVHD(file, disk)) }()

	volume = volumeRoot(volume)
	partition, fileSystem, hr := s.api.VolumeSize(volume)
	if err := result("size of volume", volume, hr); err != nil {
		return err
	}
	target := partition / clusterSize
	if fileSystem/clusterSize+1 >= target {
		return nil
	}
	return result("extend volume", volume, s.api.ExtendVolume(volume, target*(clusterSize/sectorSize)))
}

// Destroy implements [Host].
func (s *System) Destroy(ctx context.Context, folder string) error {
	if err := checkFolder("layer folder", folder); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{op: "DestroyLayer", path: id, do: func(context.Context) error {
		return s.uses.unless(id, func() error {
			return result("DestroyLayer", id, s.api.DestroyLayer(id))
		})
	}})
}

// GrantVMAccess implements [Host].
func (s *System) GrantVMAccess(ctx context.Context, vmID, file string) error {
	return s.access(ctx, "GrantVmAccess", vmID, file, s.api.GrantVmAccess)
}

// RevokeVMAccess implements [Host].
func (s *System) RevokeVMAccess(ctx context.Context, vmID, file string) error {
	return s.access(ctx, "HcsRevokeVmAccess", vmID, file, s.api.HcsRevokeVmAccess)
}

func (s *System) access(ctx context.Context, op, vmID, file string, do func(vmID, file string) HRESULT) error {
	if vmID == "" {
		return fmt.Errorf("%w: %s %s: no VM is named", ErrInvalid, op, file)
	}
	if err := errors.Join(checkText("VM identifier", vmID), checkPath("file", file)); err != nil {
		return err
	}
	return s.run(ctx, call{op: op, path: file,
		do: func(context.Context) error { return result(op, file, do(vmID, file)) }})
}

// GrantVMGroupAccess implements [Host].
func (s *System) GrantVMGroupAccess(ctx context.Context, path string) error {
	if err := checkPath("path", path); err != nil {
		return err
	}
	const op = "grant the VM group access to"
	return s.run(ctx, call{op: op, path: path,
		do: func(context.Context) error { return result(op, path, s.api.GrantGroup(path)) }})
}
