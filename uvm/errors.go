package uvm

import (
	"errors"
	"fmt"
)

// Sentinels that errors of this package match with errors.Is.
var (
	// ErrNoAvailableLocation: every slot of the kind is taken.
	ErrNoAvailableLocation = errors.New("no available location")
	// ErrNotAttached: nothing of that name or path is attached.
	ErrNotAttached = errors.New("not attached")
	// ErrAlreadyAttached: the place is taken by something else.
	ErrAlreadyAttached = errors.New("already attached")
	// ErrNoSCSIControllers: the VM was made without SCSI controllers.
	ErrNoSCSIControllers = errors.New("no SCSI controllers configured for this utility VM")
	// ErrNoVPMEM: the VM was made without persistent-memory devices, or must not use them.
	ErrNoVPMEM = errors.New("no VPMEM devices configured for this utility VM")
	// ErrMaxVPMEMLayerSize: the file is larger than a persistent-memory device may be.
	ErrMaxVPMEMLayerSize = errors.New("layer is too large for a VPMEM device")
	// ErrVPMEMAlign: the size of the file does not suit the persistent-memory devices of this VM.
	ErrVPMEMAlign = errors.New("size does not suit a VPMEM device")
	// ErrNotSupported: this VM or its guest cannot do that.
	ErrNotSupported = fmt.Errorf("not supported by this utility VM: %w", errors.ErrUnsupported)
	// ErrClaimed: the container id is in use in this VM.
	ErrClaimed = errors.New("container id is in use")
	// ErrUnknownClaim: no container of that id holds anything in this VM.
	ErrUnknownClaim = errors.New("no such container in this utility VM")
	// ErrGuestPathInUse: something is mounted at the guest path already.
	ErrGuestPathInUse = errors.New("guest path is in use")
	// ErrLocked: another process works with this VM.
	ErrLocked = errors.New("the utility VM is in use by another process")
	// ErrNoAnswer: the machine runs, and says nothing for as long as Options.ResponseTimeout.
	ErrNoAnswer = errors.New("the utility VM does not answer")
	// ErrJournal: the journal is damaged in a way that a crash does not cause.
	ErrJournal = errors.New("the journal is damaged")
	// ErrClosed: the UtilityVM was closed by this process.
	ErrClosed = errors.New("the utility VM handle is closed")
)
