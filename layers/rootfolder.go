package layers

import (
	"context"
	"fmt"
)

// checkRootFolder validates RootFolder, before anything is changed.
func (r *Request) checkRootFolder() error {
	switch {
	case r.windows():
		return fmt.Errorf("%w: a folder as the root is for Linux containers", ErrInvalid)
	case len(r.Layers) > 0 || r.Scratch != "":
		return fmt.Errorf("%w: give either RootFolder, or layers and a scratch", ErrInvalid)
	}
	if err := localPath(ErrInvalid, "root", r.RootFolder); err != nil {
		return err
	}
	resolved, err := r.names.EvalSymlinks(r.RootFolder)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	fi, err := r.names.Stat(resolved)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("%w: root %s is no folder", ErrInvalid, r.RootFolder)
	}
	r.RootFolder = resolved
	return nil
}

// mountFolder mounts a host folder as the root.
func mountFolder(ctx context.Context, r *Request, m *Mounted) error {
	if err := attachVolumes(ctx, r, m); err != nil {
		return err
	}
	le, err := r.VM.VirtioFS().ShareAt(ctx, m.claim, roleRoot, r.RootFolder, r.GuestRoot+"/rootfs")
	if err != nil {
		return err
	}
	m.Root = le.GuestPath()
	return attachNetwork(ctx, r, m)
}
