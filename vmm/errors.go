package vmm

import (
	"errors"
	"fmt"
)

// Errors of drivers match these sentinels with errors.Is.
var (
	// ErrGone: the machine has exited, or its VMM has died. Everything in it is gone, too.
	ErrGone = errors.New("the virtual machine is gone")
	// ErrBusy: the guest could not release something that is in use. The text names the user, if the guest knows it.
	ErrBusy = errors.New("in use")
	// ErrOccupied: something else is at the address.
	ErrOccupied = errors.New("address is occupied")
	// ErrInvalid: the guest refused an invalid request, such as mounting a disk without a file system.
	ErrInvalid = errors.New("refused by the guest as invalid")
	// ErrGuestUnreachable: the machine is running, but its agent does not respond.
	ErrGuestUnreachable = errors.New("the guest agent does not answer")
	// ErrProtocol: the guest violated the protocol, so the connection to it was closed. Errors that match it also
	// match ErrGuestUnreachable.
	ErrProtocol = errors.New("the guest broke the protocol")
	// ErrNotPluggable: the machine cannot attach a device of this size, kind or access right; another kind of device
	// may work.
	ErrNotPluggable = errors.New("cannot be attached this way")
	// ErrHostFull: the host file system with a disk of the machine is full.
	ErrHostFull = errors.New("the host's disk is full")
	// ErrAccessDenied: this host process may not open the file or perform the operation.
	ErrAccessDenied = errors.New("access denied")
	// ErrProgramNotFound: the program of Exec, or the interpreter that it names, does not exist.
	ErrProgramNotFound = errors.New("program not found")
	// ErrNotExecutable: the program of Exec cannot be executed because of its mode or format.
	ErrNotExecutable = errors.New("program cannot be executed")
	// ErrNoProcess: FindProcess found no such process: it never existed, or ended too long ago.
	ErrNoProcess = errors.New("no such process in the machine")
	// ErrNoVM: a state directory holds no machine.
	ErrNoVM = errors.New("there is no utility VM")
	// ErrRunning: a state directory holds a running machine.
	ErrRunning = errors.New("the utility VM runs already")
)

// Outcome is the outcome of one half of a Change.
type Outcome uint8

// The outcomes.
const (
	NotDone Outcome = iota // had no effect, or was undone by the driver
	Done                   // took effect
	Unknown                // may have taken effect
)

func (o Outcome) String() string { return [...]string{"not done", "done", "unknown"}[o%3] }

// ApplyError is the error of Machine.Apply. Halves that are not set in the Change are NotDone.
type ApplyError struct {
	Change Change
	Host   Outcome
	Guest  Outcome
	Err    error // the cause
}

// Error returns the change, the outcomes of its halves, and the cause.
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

// Outcomes returns the outcomes of the halves of c after Apply returned err. A nil error means that both are done, an
// error other than an ApplyError that both are unknown.
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
