package uvm

import (
	"errors"
	"fmt"
)

// Sentinels that errors of this package match with errors.Is.
var (
	// ErrNoAvailableLocation: all slots of this kind are taken.
	ErrNoAvailableLocation = errors.New("no available location")
	// ErrNotAttached: nothing with that name or path is attached.
	ErrNotAttached = errors.New("not attached")
	// ErrAlreadyAttached: the resource is in use by another claim and cannot be shared.
	ErrAlreadyAttached = errors.New("already attached")
	// ErrNoSCSIControllers: the VM has no SCSI controllers.
	ErrNoSCSIControllers = errors.New("no SCSI controllers configured for this utility VM")
	// ErrNoVPMEM: the VM has no persistent-memory devices, or must not use them.
	ErrNoVPMEM = errors.New("no VPMEM devices configured for this utility VM")
	// ErrMaxVPMEMLayerSize: the file is larger than a persistent-memory device may be.
	ErrMaxVPMEMLayerSize = errors.New("layer is too large for a VPMEM device")
	// ErrVPMEMAlign: the size of the file is not a multiple of the alignment of this VM's persistent-memory devices.
	ErrVPMEMAlign = errors.New("size does not suit a VPMEM device")
	// ErrNotSupported: this VM or its guest cannot do that.
	ErrNotSupported = fmt.Errorf("not supported by this utility VM: %w", errors.ErrUnsupported)
	// ErrClaimed: the container id is in use in this VM.
	ErrClaimed = errors.New("container id is in use")
	// ErrUnknownClaim: no container with that id holds anything in this VM.
	ErrUnknownClaim = errors.New("no such container in this utility VM")
	// ErrGuestPathInUse: something is already mounted at the guest path.
	ErrGuestPathInUse = errors.New("guest path is in use")
	// ErrLocked: another process has this VM open.
	ErrLocked = errors.New("the utility VM is in use by another process")
	// ErrNoAnswer: the machine is running but did not respond within Options.ResponseTimeout.
	ErrNoAnswer = errors.New("the utility VM does not answer")
	// ErrJournal: the journal is damaged in a way that a crash cannot cause.
	ErrJournal = errors.New("the journal is damaged")
	// ErrClosed: the UtilityVM was closed by this process.
	ErrClosed = errors.New("the utility VM handle is closed")
)
