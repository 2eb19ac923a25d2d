package gcs

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// What a guest answers is found by callers of package vmm, who know nothing of this protocol.
func TestErrorsMatchThoseOfTheContract(t *testing.T) {
	answer := func(r HRESULT, text string) error {
		return fmt.Errorf("add disk: %w", &Error{Op: "modify", Result: r, Message: text})
	}
	all := []error{vmm.ErrBusy, vmm.ErrOccupied, vmm.ErrInvalid, vmm.ErrGuestUnreachable, errors.ErrUnsupported,
		ErrNotFound, ErrTimeout,
		vmm.ErrProgramNotFound, vmm.ErrNotExecutable}
	for name, tt := range map[string]struct {
		err     error
		is      error // of all, the one that is matched; nil: none
		outcome vmm.Outcome
	}{
		"success":                    {nil, nil, vmm.Done},
		"busy":                       {answer(ResultBusy, ""), vmm.ErrBusy, vmm.NotDone},
		"busy, said in words":        {answer(ResultFail, "unmount: Device or resource busy"), vmm.ErrBusy, vmm.NotDone},
		"exists":                     {answer(ResultExists, ""), vmm.ErrOccupied, vmm.NotDone},
		"a container exists":         {answer(ResultContainerExists, ""), vmm.ErrOccupied, vmm.NotDone},
		"invalid argument":           {answer(ResultInvalidArgument, ""), vmm.ErrInvalid, vmm.NotDone},
		"invalid document":           {answer(ResultInvalidJSON, ""), vmm.ErrInvalid, vmm.NotDone},
		"not implemented":            {answer(ResultNotImplemented, ""), errors.ErrUnsupported, vmm.NotDone},
		"not supported":              {answer(ResultNotSupported, ""), errors.ErrUnsupported, vmm.NotDone},
		"unknown message":            {answer(ResultUnknownMessage, ""), errors.ErrUnsupported, vmm.NotDone},
		"protocol version":           {answer(ResultProtocolVersion, ""), errors.ErrUnsupported, vmm.NotDone},
		"unknown resource, in words": {answer(ResultFail, "invalid resource type"), errors.ErrUnsupported, vmm.NotDone},
		"no element":                 {answer(ResultElementNotFound, ""), ErrNotFound, vmm.NotDone},
		"no program":                 {answer(ResultProgramNotFound, ""), vmm.ErrProgramNotFound, vmm.NotDone},
		"no program, said in words": {answer(ResultFail, `exec: "x": executable file not found in $PATH`),
			vmm.ErrProgramNotFound, vmm.NotDone},
		"not executable":           {answer(ResultNotExecutable, ""), vmm.ErrNotExecutable, vmm.NotDone},
		"a format, said in words":  {answer(ResultFail, "exec /x: exec format error"), vmm.ErrNotExecutable, vmm.NotDone},
		"no container":             {answer(ResultContainerNotFound, ""), ErrNotFound, vmm.NotDone},
		"a container that stopped": {answer(ResultContainerStopped, ""), ErrNotFound, vmm.NotDone},
		"the guest's own timeout":  {answer(ResultTimeout, ""), ErrTimeout, vmm.Unknown},
		"a failure":                {answer(ResultFail, "bad superblock"), nil, vmm.NotDone},
		"the bridge broke":         {ErrClosed, vmm.ErrGuestUnreachable, vmm.Unknown},
		"nonsense":                 {ErrProtocol, vmm.ErrGuestUnreachable, vmm.Unknown},
		"never sent":               {fmt.Errorf("%w: %w", ErrNotSent, ErrClosed), vmm.ErrGuestUnreachable, vmm.NotDone},
		"given up":                 {context.DeadlineExceeded, nil, vmm.Unknown},
	} {
		for _, target := range all {
			if got, want := errors.Is(tt.err, target), tt.is == target; got != want {
				t.Errorf("%s (%v): matches %q: %v, want %v", name, tt.err, target, got, want)
			}
		}
		if errors.Is(tt.err, vmm.ErrGone) {
			t.Errorf("%s: the guest's answer is taken for the end of the machine", name)
		}
		if got := Outcome(tt.err); got != tt.outcome {
			t.Errorf("%s: %s, want %s", name, got, tt.outcome)
		}
	}
}
