package layers

import (
	"context"
	"fmt"
)

// checkRootFolder refuses what makes no sense, before anything is touched.
func (r *Request) checkRootFolder() error {
	switch {
	case r.windows():
		return fmt.Errorf("%w: a folder as the root is for Linux containers", ErrInvalid)
	case len(r.Layers) > 0 || r.Scratch != "":
		return fmt.Errorf("%w: give a folder that is the root, or layers and a scratch, not both", ErrInvalid)
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

// mountFolder makes a folder of the host the root.
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
