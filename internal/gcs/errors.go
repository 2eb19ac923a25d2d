package gcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/vmm"
)

// Sentinel errors, for errors.Is. Those with a counterpart in package vmm match that too: this is the only place where
// the guest's result codes are mapped to errors.
var (
	// ErrClosed: the bridge is closed. The outcome of a pending call is unknown.
	ErrClosed error = &also{"the bridge to the guest is closed", []error{vmm.ErrGuestUnreachable}}
	// ErrNotSent: the request was not sent, and had no effect.
	ErrNotSent = errors.New("the request was not sent")
	// ErrProtocol: the guest violated the protocol, and the bridge was closed.
	ErrProtocol error = &also{vmm.ErrProtocol.Error(), []error{vmm.ErrProtocol, vmm.ErrGuestUnreachable}}
	// ErrBusy: something cannot be removed because it is in use. The text names the holder where the guest
	// reports it.
	ErrBusy = fmt.Errorf("%w in the guest", vmm.ErrBusy)
	// ErrNotFound: the guest does not know the container, process or device.
	ErrNotFound = errors.New("not found in the guest")
	// ErrExists: the path or id is in use in the guest.
	ErrExists = fmt.Errorf("%w in the guest", vmm.ErrOccupied)
	// ErrUnsupported: the guest does not know the request or the resource.
	ErrUnsupported = fmt.Errorf("%w by the guest", errors.ErrUnsupported)
	// ErrInvalid: the guest finds the request malformed.
	ErrInvalid = vmm.ErrInvalid
	// ErrTimeout: a timeout in the guest. Whether the request took effect is unknown.
	ErrTimeout = errors.New("the guest timed out")
)

// also is an error that matches others without including their text.
type also struct {
	text    string
	matches []error
}

func (e *also) Error() string   { return e.text }
func (e *also) Unwrap() []error { return e.matches }

// Outcome returns what is known about the effect of a request that returned err.
func Outcome(err error) vmm.Outcome {
	_, answered := errors.AsType[*Error](err)
	switch {
	case err == nil:
		return vmm.Done
	case answered && !errors.Is(err, ErrTimeout), errors.Is(err, ErrNotSent):
		return vmm.NotDone
	}
	return vmm.Unknown
}

// HRESULT is a result code. On the wire it is a signed 32-bit number.
type HRESULT uint32

// The results guests give.
const (
	ResultOK                HRESULT = 0
	ResultNotImplemented    HRESULT = 0x80004001
	ResultFail              HRESULT = 0x80004005
	ResultInvalidArgument   HRESULT = 0x80070057
	ResultElementNotFound   HRESULT = 0x80070490
	ResultInvalidState      HRESULT = 0x80370105
	ResultTimeout           HRESULT = 0xC0370109
	ResultUnknownMessage    HRESULT = 0xC037010B
	ResultProtocolVersion   HRESULT = 0xC037010C
	ResultInvalidJSON       HRESULT = 0xC037010D
	ResultContainerNotFound HRESULT = 0xC037010E
	ResultContainerExists   HRESULT = 0xC037010F
	ResultContainerStopped  HRESULT = 0xC0370110
	// Extensions of our agent; other guests return ResultFail instead.
	ResultBusy            HRESULT = 0x800700AA
	ResultExists          HRESULT = 0x800700B7
	ResultProgramNotFound HRESULT = 0x80070002
	ResultNotExecutable   HRESULT = 0x800700C1
	ResultNotSupported    HRESULT = 0x80070032
	ResultPaused          HRESULT = 0x80070015
	ResultNotPaused       HRESULT = 0x8007139F
)

// String returns the code in hex, as it is usually written.
func (r HRESULT) String() string { return fmt.Sprintf("0x%08x", uint32(r)) }

// MarshalJSON writes the code as the signed number that the protocol wants.
func (r HRESULT) MarshalJSON() ([]byte, error) { return json.Marshal(int32(r)) }

// UnmarshalJSON reads a signed or an unsigned number.
func (r *HRESULT) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	if n < -1<<31 || n >= 1<<32 {
		return fmt.Errorf("result %d does not fit in 32 bits", n)
	}
	*r = HRESULT(uint32(n))
	return nil
}

var resultSentinels = map[HRESULT]error{
	ResultNotImplemented: ErrUnsupported, ResultNotSupported: ErrUnsupported,
	ResultUnknownMessage: ErrUnsupported, ResultProtocolVersion: ErrUnsupported,
	ResultInvalidArgument: ErrInvalid, ResultInvalidJSON: ErrInvalid,
	ResultElementNotFound: ErrNotFound, ResultContainerNotFound: ErrNotFound,
	ResultProgramNotFound: vmm.ErrProgramNotFound, ResultNotExecutable: vmm.ErrNotExecutable,
	ResultContainerStopped: ErrNotFound,
	ResultContainerExists:  ErrExists, ResultExists: ErrExists,
	ResultPaused: vmm.ErrPaused, ResultNotPaused: vmm.ErrNotPaused,
	ResultBusy: ErrBusy, ResultTimeout: ErrTimeout,
}

// failTexts recognise, by their text, errors for which other guests have no specific code.
var failTexts = []struct {
	text string // lower case
	err  error
}{
	{"device or resource busy", ErrBusy},
	{"executable file not found", vmm.ErrProgramNotFound},
	{"exec format error", vmm.ErrNotExecutable},
	{"resource type", ErrUnsupported},
	{"resourcetype", ErrUnsupported},
}

// ErrorRecord is one entry of an error's trace in the guest.
type ErrorRecord struct {
	Result       HRESULT
	Message      string
	StackTrace   string `json:",omitempty"`
	ModuleName   string
	FileName     string
	Line         uint32
	FunctionName string `json:",omitempty"`
}

// Error is the guest's response that a request failed and had no effect.
type Error struct {
	Op      string // the request
	Result  HRESULT
	Message string
	Records []ErrorRecord
}

// Error returns the guest's message, with the request and the result code in parentheses.
func (e *Error) Error() string {
	msg := e.Message
	for _, r := range e.Records {
		if r.Message != "" && !strings.Contains(msg, r.Message) {
			msg = strings.TrimPrefix(msg+"; "+r.Message, "; ")
		}
	}
	if msg == "" {
		msg = "no reason given"
	}
	return fmt.Sprintf("%s (the guest refused %s with %v)", msg, e.Op, e.Result)
}

// Is reports whether target is the sentinel of the result.
func (e *Error) Is(target error) bool {
	if errors.Is(resultSentinels[e.Result], target) {
		return true
	}
	if e.Result != ResultFail {
		return false
	}
	text := strings.ToLower(e.Error())
	for _, t := range failTexts {
		if errors.Is(t.err, target) && strings.Contains(text, t.text) {
			return true
		}
	}
	return false
}

// Timeout reports whether the error is a timeout in the guest, as in net.Error.
func (e *Error) Timeout() bool { return errors.Is(e, ErrTimeout) }

// Limits of what is kept of a guest's error.
const (
	maxErrorText    = 4096
	maxErrorRecords = 8
)

// errorFrom returns the Error of a response, or nil if it succeeded.
func errorFrom(op string, b *ResponseBase) error {
	if b.Result == ResultOK {
		return nil
	}
	records := slices.Clone(b.ErrorRecords[:min(len(b.ErrorRecords), maxErrorRecords)])
	for i := range records {
		records[i].Message = printable(records[i].Message)
		records[i].StackTrace = ""
	}
	return &Error{Op: op, Result: b.Result, Message: printable(b.ErrorMessage), Records: records}
}

// printable truncates the guest's text and replaces characters that could control a terminal.
func printable(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
