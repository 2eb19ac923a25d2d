package wclayer

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/stratavm/strata/internal/hcsapi"
	"github.com/stratavm/strata/vmm"
)

// HRESULT is what every function of the platform returns.
type HRESULT = hcsapi.HRESULT

// Win32 wraps a Win32 error number the way the platform's functions do.
func Win32(code uint16) HRESULT { return hcsapi.Win32(code) }

// Sentinels that an [Error] matches by its code.
var (
	ErrNotReady         = errors.New("the device is not ready")
	ErrNotConnected     = errors.New("the device is not connected")
	ErrNoDevice         = errors.New("the device no longer exists")
	ErrSharingViolation = errors.New("used by another process, or a driver refuses the layer: " +
		"compare the build of the image with that of the host, and look for filter drivers of other products (fltmc)")
	ErrFilterConflict = errors.New("a filter driver of another product interferes: fltmc lists them")
	ErrUnknownFormat  = errors.New("layer with an unrecognised format: the image may be newer than the host")
	ErrExportNotFound = fmt.Errorf("this Windows lacks the function: %w", errors.ErrUnsupported)
	ErrNotSupported   = fmt.Errorf("not supported: %w", errors.ErrUnsupported)
	ErrInvalidHandle  = errors.New("invalid handle")
	ErrInvalidData    = errors.New("invalid data")
	ErrBadParameter   = errors.New("invalid parameter")
	ErrNotFound       = errors.New("element not found")
	ErrTimeout        = errors.New("timed out")
	ErrInvalidState   = errors.New("not valid in the current state")
	ErrNotAttached    = errors.New("the filter is not attached")
	ErrDiskFull       = errors.New("the disk is full")
	ErrFileMissing    = fmt.Errorf("a folder or file of the layer is missing: %w", fs.ErrNotExist)
	ErrExists         = fmt.Errorf("it exists already: %w", fs.ErrExist)
	ErrDenied         = fmt.Errorf("%w: run elevated, and make sure that nobody holds the folder open: %w",
		vmm.ErrAccessDenied, fs.ErrPermission)
)

// Sentinels that do not come from the platform.
var (
	// ErrInvalid: an argument is invalid; nothing was called.
	ErrInvalid = errors.New("invalid argument")
	// ErrInUse: the layer is mounted, or is a parent of one that is.
	ErrInUse = fmt.Errorf("layer is in use: %w", vmm.ErrBusy)
	// ErrUnfinished: the caller's context ended during a call. The call is undone when it completes.
	ErrUnfinished = errors.New("the platform has not answered yet")
)

// meanings are the sentinels by code.
var meanings = map[uint32]error{
	0x1:        ErrFilterConflict,
	0x2:        ErrFileMissing,
	0x3:        ErrFileMissing,
	0x5:        ErrDenied,
	0x6:        ErrInvalidHandle,
	0xD:        ErrInvalidData,
	0x15:       ErrNotReady,
	0x20:       ErrSharingViolation,
	0x32:       ErrNotSupported,
	0x37:       ErrNoDevice,
	0x50:       ErrExists,
	0x57:       ErrBadParameter,
	0x70:       ErrDiskFull,
	0x7F:       ErrExportNotFound,
	0xB7:       ErrExists,
	0x48F:      ErrNotConnected,
	0x490:      ErrNotFound,
	0x5B4:      ErrTimeout,
	0x139F:     ErrInvalidState,
	0x801F0015: ErrNotAttached,
	0x80370105: ErrInvalidState,
	0x80370118: ErrTimeout,
	0xC0370105: ErrInvalidState,
	0xC0370109: ErrTimeout,
	0xC0370112: ErrUnknownFormat,
}

// Error is a failed call into the platform.
type Error struct {
	Op   string // the function, such as "ActivateLayer"
	Path string // its argument: a folder, a volume or a file
	HR   HRESULT
}

// Error names function, path, result and what the result means.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Op, e.Path)
	if c := e.HR.Code(); c < 0x10000 {
		fmt.Fprintf(&b, "Win32 error %d (0x%x)", c, c)
	} else {
		fmt.Fprintf(&b, "HRESULT 0x%08x", c)
	}
	if m := meanings[e.HR.Code()]; m != nil {
		fmt.Fprintf(&b, ": %v", m)
	}
	return b.String()
}

// Unwrap returns the sentinel of the code, or nil.
func (e *Error) Unwrap() error { return meanings[e.HR.Code()] }

// result returns the error of a call, or nil if it succeeded.
func result(op, path string, hr HRESULT) error {
	if hr.Failed() {
		return &Error{Op: op, Path: path, HR: hr}
	}
	return nil
}

// transient reports whether a call may succeed if it is repeated.
func transient(hr HRESULT) bool { return hr.Code() == 0x15 || hr.Code() == 0x48F }
