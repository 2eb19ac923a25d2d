package vmm

import (
	"errors"
	"fmt"
)

// Sentinels that drivers' errors match with errors.Is.
var (
	// ErrGone: the machine has exited or its VMM died. What was in it is gone too.
	ErrGone = errors.New("the virtual machine is gone")
	// ErrBusy: the guest could not release something that is in use. The text names the holder
	// where the guest can tell.
	ErrBusy = errors.New("in use")
	// ErrOccupied: something else sits at the address.
	ErrOccupied = errors.New("address is occupied")
	// ErrInvalid: the guest finds no sense in what it was asked, such as mounting a disk without a file system.
	ErrInvalid = errors.New("refused by the guest as invalid")
	// ErrGuestUnreachable: the machine runs but its agent does not answer.
	ErrGuestUnreachable = errors.New("the guest agent does not answer")
	// ErrProtocol: the guest sent what its agent never sends, so the connection to it was closed. Errors that match it
	// match ErrGuestUnreachable too.
	ErrProtocol = errors.New("the guest broke the protocol")
	// ErrNotPluggable: the machine cannot take a device of this size, kind or access right; a device of
	// another kind may do.
	ErrNotPluggable = errors.New("cannot be attached this way")
	// ErrHostFull: the file system of the host is full that a disk of the machine is on.
	ErrHostFull = errors.New("the host's disk is full")
	// ErrAccessDenied: the host may not open the file or do the operation.
	ErrAccessDenied = errors.New("access denied")
	// ErrProgramNotFound: Exec found no such program, or not the interpreter that it names.
	ErrProgramNotFound = errors.New("program not found")
	// ErrNotExecutable: the program that Exec found cannot be executed: its mode, or its format.
	ErrNotExecutable = errors.New("program cannot be executed")
	// ErrNoProcess: FindProcess found no such process. It never was, or it ended too long ago.
	ErrNoProcess = errors.New("no such process in the machine")
	// ErrNoVM: a state directory holds no machine.
	ErrNoVM = errors.New("there is no utility VM")
	// ErrRunning: a state directory holds a machine that runs already.
	ErrRunning = errors.New("the utility VM runs already")
)

// Outcome is what is known about one half of a Change after Apply.
type Outcome uint8

// The three outcomes.
const (
	NotDone Outcome = iota // certainly had no effect, or was undone by the driver
	Done                   // certainly took effect
	Unknown                // may have taken effect
)

func (o Outcome) String() string { return [...]string{"not done", "done", "unknown"}[o%3] }

// ApplyError is the error of Machine.Apply. Halves that the Change does not have are NotDone.
type ApplyError struct {
	Change Change
	Host   Outcome
	Guest  Outcome
	Err    error // the cause
}

// Error names the change, what is known of its halves, and the cause.
func (e *ApplyError) Error() string {
	state := ""
	if e.Change.Device != nil {
		state += ", host " + e.Host.String()
	}
	if e.Change.Mount != nil {
		state += ", guest " + e.Guest.String()
	}
	if state != "" {
		state = " (" + state[2:] + ")"
	}
	return fmt.Sprintf("%s%s: %v", e.Change, state, e.Err)
}

// Unwrap returns the cause.
func (e *ApplyError) Unwrap() error { return e.Err }

// Outcomes reports what is known of the halves of c after Apply returned err. A nil error means both
// are done; an error that is no ApplyError means nothing is known.
func Outcomes(c Change, err error) (host, guest Outcome) {
	known := func(present bool, o Outcome) Outcome {
		if !present {
			return NotDone
		}
		return o
	}
	if err == nil {
		return known(c.Device != nil, Done), known(c.Mount != nil, Done)
	}
	if ae, ok := errors.AsType[*ApplyError](err); ok {
		return known(c.Device != nil, ae.Host), known(c.Mount != nil, ae.Guest)
	}
	return known(c.Device != nil, Unknown), known(c.Mount != nil, Unknown)
}
