package hcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// Sentinels that an [*Error] matches by its code. It may match more than one.
var (
	ErrDoesNotExist       = errors.New("the compute system does not exist")
	ErrAlreadyExists      = errors.New("the compute system exists already")
	ErrAlreadyStopped     = errors.New("already stopped")
	ErrClosed             = errors.New("the handle is closed")
	ErrInvalidState       = errors.New("not valid in the current state")
	ErrUnexpectedExit     = errors.New("unexpected exit")
	ErrTimeout            = errors.New("timed out")
	ErrNotSupported       = fmt.Errorf("not supported by this service or guest: %w", errors.ErrUnsupported)
	ErrInvalidDocument    = errors.New("the document was not understood")
	ErrProtocolVersion    = errors.New("unsupported protocol version")
	ErrElementNotFound    = errors.New("element not found")
	ErrExportNotFound     = errors.New("this Windows lacks the function")
	ErrUnknownFormat      = errors.New("unrecognised layer format")
	ErrNotReady           = errors.New("the device is not ready")
	ErrNotConnected       = errors.New("the device is not connected")
	ErrSharingViolation   = errors.New("the file is used by another process")
	ErrInvalidParameter   = errors.New("invalid parameter")
	ErrInvalidHandle      = errors.New("invalid handle")
	ErrInvalidData        = errors.New("invalid data")
	ErrServiceUnavailable = errors.New("the Host Compute Service went away")
)

// meanings lists the sentinels of each code. The error text uses the first; the error matches all of them.
var meanings = map[uint32][]error{
	0x5:        {vmm.ErrAccessDenied},
	0x6:        {ErrInvalidHandle},
	0xD:        {ErrInvalidData, ErrNotSupported},
	0x15:       {ErrNotReady},
	0x20:       {ErrSharingViolation},
	0x32:       {ErrNotSupported},
	0x57:       {ErrInvalidParameter},
	0x7F:       {ErrExportNotFound},
	0x48F:      {ErrNotConnected},
	0x490:      {ErrElementNotFound},
	0x80370105: {ErrInvalidState},
	0x80370110: {ErrAlreadyStopped, vmm.ErrGone},
	0x80370118: {ErrTimeout},
	0x8037011F: {ErrAlreadyStopped},
	0x8007139F: {ErrInvalidState},
	0x139F:     {ErrInvalidState},
	0xC0370105: {ErrInvalidState},
	0xC0370106: {ErrUnexpectedExit, vmm.ErrGone},
	0xC0370109: {ErrTimeout},
	0xC037010B: {ErrNotSupported},
	0xC037010C: {ErrProtocolVersion},
	0xC037010D: {ErrInvalidDocument, ErrNotSupported},
	0xC037010E: {ErrDoesNotExist, vmm.ErrGone},
	0xC037010F: {ErrAlreadyExists},
	0xC0370110: {ErrAlreadyStopped, vmm.ErrGone},
	0xC0370112: {ErrUnknownFormat},
}

// Error is a failed call: the operation, the system, the result code, and the service's own document about the failure.
type Error struct {
	Op     string // such as "modify compute system"
	System string // its identifier; empty for the service itself
	HR     HRESULT
	Result hcsschema.ResultError
}

// newError creates the Error of a failed call. The result document may be empty or malformed.
func newError(op, system string, hr HRESULT, result string) *Error {
	e := &Error{Op: op, System: system, HR: hr}
	if result != "" {
		if err := json.Unmarshal([]byte(result), &e.Result); err != nil {
			e.Result = hcsschema.ResultError{ErrorMessage: result}
		}
	}
	return e
}

// maxEvents bounds the number of error events shown, and maxText the length of a text from the service or guest.
const (
	maxEvents = 8
	maxText   = 2048
)

// Error returns a description in one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", e.Op)
	if e.System != "" {
		fmt.Fprintf(&b, " %s", e.System)
	}
	fmt.Fprintf(&b, ": HRESULT 0x%08x", uint32(e.HR))
	if m := meanings[e.HR.Code()]; m != nil {
		fmt.Fprintf(&b, ": %v", m[0])
	}
	if e.Result.ErrorMessage != "" {
		fmt.Fprintf(&b, ": %s", clean(e.Result.ErrorMessage))
	}
	for i, ev := range e.Result.ErrorEvents {
		if i == maxEvents {
			fmt.Fprintf(&b, " [%d more events]", len(e.Result.ErrorEvents)-i)
			break
		}
		source := ev.Source
		if source == "" {
			source = ev.Provider
		}
		fmt.Fprintf(&b, " [event %s %d: %s]", clean(source), ev.EventId, clean(ev.Message))
	}
	return b.String()
}

// clean makes a text of the service suitable for one line.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Join(strings.Fields(s), " ")
}

// Is matches the sentinels of the code.
func (e *Error) Is(target error) bool {
	for _, m := range meanings[e.HR.Code()] {
		if errors.Is(m, target) {
			return true
		}
	}
	return false
}

// codeOf returns the code of the first Error in a chain.
func codeOf(err error) (uint32, bool) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.HR.Code(), true
	}
	return 0, false
}

func hasCode(err error, codes ...uint32) bool {
	code, ok := codeOf(err)
	for _, c := range codes {
		if ok && c == code {
			return true
		}
	}
	return false
}

// IsNotExist reports whether a call failed because the system does not exist.
func IsNotExist(err error) bool { return hasCode(err, 0xC037010E, 0x490) }

// IsAlreadyStopped reports whether a call on a system or process failed because it has ended.
func IsAlreadyStopped(err error) bool {
	return hasCode(err, 0xC0370110, 0x80370110, 0x8037011F, 0x490)
}

// IsAlreadyClosed reports whether a call was made after Close.
func IsAlreadyClosed(err error) bool { return errors.Is(err, ErrClosed) }

// IsPending reports whether a call was accepted and completes with a notification.
func IsPending(err error) bool { return hasCode(err, uint32(Pending)) }

// IsTimeout reports whether the service or guest timed out, or the error has a method Timeout that returns true.
func IsTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return errors.Is(err, ErrTimeout) || ok && t.Timeout()
}

// IsNotSupported reports whether the service or guest does not support the request.
func IsNotSupported(err error) bool { return hasCode(err, 0xC037010D, 0xD, 0x32, 0xC037010B) }

// IsInvalidState reports whether the system is in a state that does not allow the call.
func IsInvalidState(err error) bool { return errors.Is(err, ErrInvalidState) }

// IsUnavailable reports whether the VM cannot be used any more, so that its resources count as released.
func IsUnavailable(err error) bool {
	return errors.Is(err, vmm.ErrGone) || IsNotExist(err) || IsAlreadyStopped(err) ||
		IsAlreadyClosed(err) || IsInvalidState(err)
}
