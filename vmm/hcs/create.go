package hcs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// CreateLCOW creates a VM for Linux containers; Start boots it. It checks options and boot files before it calls the
// service. If ctx ends before the service has created the VM, the VM is terminated once it exists.
func CreateLCOW(ctx context.Context, host Host, o OptionsLCOW) (*Machine, error) {
	m, err := newLCOW(&host, &o)
	if err != nil {
		return nil, err
	}
	for _, file := range []string{o.KernelFile, o.RootFSFile} {
		path := hostpath.Join(o.BootFilesPath, file)
		if err := needFile(host.FS, path); err != nil {
			return nil, fmt.Errorf("create utility VM %s: boot file %s: %w", o.ID, path, err)
		}
	}
	count, err := processorCount(ctx, &host, &o.Options)
	if err != nil {
		return nil, err
	}
	if err := m.create(ctx, &o.Options, o.document(count)); err != nil {
		return nil, err
	}
	return m, nil
}

// OpenLCOW opens a running VM that was created with these options, which must be Persistent.
func OpenLCOW(ctx context.Context, host Host, o OptionsLCOW) (*Machine, error) {
	m, err := newLCOW(&host, &o)
	if err != nil {
		return nil, err
	}
	if err := m.open(ctx, &o.Options); err != nil {
		return nil, err
	}
	return m, nil
}

func newLCOW(host *Host, o *OptionsLCOW) (*Machine, error) {
	if err := host.complete(); err != nil {
		return nil, err
	}
	if err := o.check(host.Build); err != nil {
		return nil, fmt.Errorf("utility VM %s: %w", o.ID, err)
	}
	m := newMachine(*host, &o.Options, vmm.Linux, o.limits())
	if !o.UseGuestConnection {
		m.conn = noConn{}
	}
	m.forward = o.ForwardStdout || o.ForwardStderr
	m.enc.generation = o.GuestGeneration
	return m, nil
}

// CreateWCOW creates a VM for Windows containers; Start boots it. If the VM has no scratch disk yet, it is copied from
// the template in the UtilityVM folder. For the rest see CreateLCOW.
func CreateWCOW(ctx context.Context, host Host, o OptionsWCOW) (*Machine, error) {
	m, err := newWCOW(&host, &o)
	if err != nil {
		return nil, err
	}
	last := len(o.LayerFolders) - 1
	uvmFolder, err := LocateUVMFolder(host.FS, o.LayerFolders[:last])
	if err != nil {
		return nil, fmt.Errorf("create utility VM %s: %w", o.ID, err)
	}
	scratch, err := m.scratch(ctx, o.ID, uvmFolder, o.LayerFolders[last])
	if err != nil {
		return nil, fmt.Errorf("create utility VM %s: %w", o.ID, err)
	}
	count, err := processorCount(ctx, &host, &o.Options)
	if err != nil {
		return nil, err
	}
	if err := m.create(ctx, &o.Options, o.document(count, uvmFolder, scratch)); err != nil {
		return nil, err
	}
	return m, nil
}

// OpenWCOW opens a running VM that was created with these options, which must be Persistent.
func OpenWCOW(ctx context.Context, host Host, o OptionsWCOW) (*Machine, error) {
	m, err := newWCOW(&host, &o)
	if err != nil {
		return nil, err
	}
	if err := m.open(ctx, &o.Options); err != nil {
		return nil, err
	}
	return m, nil
}

func newWCOW(host *Host, o *OptionsWCOW) (*Machine, error) {
	if err := host.complete(); err != nil {
		return nil, err
	}
	if err := o.check(host.Build); err != nil {
		return nil, fmt.Errorf("utility VM %s: %w", o.ID, err)
	}
	m := newMachine(*host, &o.Options, vmm.Windows, o.limits())
	if c, ok := m.conn.(*ownConn); ok {
		c.utc = o.NoInheritHostTimezone
	}
	return m, nil
}

// scratch creates the VM's scratch disk if it does not exist, and grants the VM access to it.
func (m *Machine) scratch(ctx context.Context, id, uvmFolder, folder string) (string, error) {
	path := hostpath.Join(folder, scratchDisk)
	if _, err := m.host.FS.Stat(path); errors.Is(err, fs.ErrNotExist) {
		template := hostpath.Join(uvmFolder, systemTemplate)
		if err := m.host.FS.CopyFile(path, template); err != nil {
			return "", fmt.Errorf("copy the VM's scratch %s from %s: %w", path, template, err)
		}
	} else if err != nil {
		return "", fmt.Errorf("the VM's scratch: %w", err)
	}
	return path, m.grant(ctx, vmm.AccessIndividual, path, id)
}

// LocateUVMFolder returns the first UtilityVM folder in the layer folders, which are given top-most first.
func LocateUVMFolder(files FS, layerFolders []string) (string, error) {
	if files == nil {
		files = hostFiles{}
	}
	for _, folder := range layerFolders {
		path := hostpath.Join(folder, utilityVM)
		info, err := files.Stat(path)
		switch {
		case err == nil && info.IsDir():
			return path, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("look for a utility VM in %s: %w", folder, err)
		}
	}
	return "", fmt.Errorf("none of the %d layers has a %s folder: use an image whose base layer brings one: %w",
		len(layerFolders), utilityVM, fs.ErrNotExist)
}

func needFile(files FS, path string) error {
	info, err := files.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("it is a folder")
	}
	return nil
}

// open opens the system. On error it keeps no handles.
func (m *Machine) open(ctx context.Context, o *Options) error {
	if !o.Persistent {
		return fmt.Errorf("open utility VM %s: %w", o.ID, bad("only a Persistent VM outlives the process that made it"))
	}
	s, err := openSystem(ctx, m.host.API, o.ID)
	if err != nil {
		return fmt.Errorf("open utility VM: %w", err)
	}
	err = m.attach(ctx, s)
	if err == nil {
		err = m.conn.connect(ctx, m)
	}
	if err != nil {
		m.rest()
		s.discard(ctx, false)
		return fmt.Errorf("open utility VM: %w", err)
	}
	return nil
}

// grant grants the VM access to a file.
func (m *Machine) grant(ctx context.Context, access vmm.Access, path, vmID string) error {
	var err error
	switch access {
	case vmm.AccessNone:
		return nil
	case vmm.AccessIndividual:
		if m.host.Grant == nil {
			return fmt.Errorf("grant access to %s: Host.Grant is missing: %w", path, errors.ErrUnsupported)
		}
		err = m.host.Grant(ctx, vmID, path)
	case vmm.AccessGroup:
		if m.host.GrantGroup == nil {
			return fmt.Errorf("grant all VMs access to %s: Host.GrantGroup is missing: %w", path, errors.ErrUnsupported)
		}
		err = m.host.GrantGroup(ctx, path)
	default:
		return fmt.Errorf("grant access to %s: unknown kind of access %d", path, access)
	}
	if err != nil {
		return fmt.Errorf("grant utility VM %s access to %s: %w", vmID, path, err)
	}
	return nil
}
