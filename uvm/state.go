package uvm

import "fmt"

// State is the state of a resource.
type State uint8

// The states of a resource. See the package comment.
const (
	Free State = iota
	Reserved
	Attaching
	Attached
	Detaching
	Ejected  // removed in the guest, but not on the host
	Doubtful // a change ended without a known outcome
)

var stateNames = [...]string{"free", "reserved", "attaching", "attached", "detaching", "ejected", "doubtful"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText returns the name of the state.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses the name of a state.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("uvm: unknown state %q", b)
}

// event is an event in the life of a resource.
type event uint8

const (
	evReserve     event = iota // a slot or name was set aside
	evCancel                   // the reservation was cancelled
	evAttach                   // Add is about to be applied
	evDetach                   // Remove is about to be applied
	evDone                     // the change in progress took effect
	evNotDone                  // the change in progress had no effect
	evUnknown                  // the change in progress may have taken effect
	evGuestLetGo               // Remove: the guest half took effect, the host half did not
	evLost                     // the resource is known not to exist
	evFound                    // the resource is known to exist
	evMachineGone              // the machine is gone, and everything in it
	numEvents
)

// transitions is the complete state machine: for each state, the events that may occur and the states they lead to.
// Any other event is a bug in this package.
var transitions = map[State]map[event]State{
	Free:     {evReserve: Reserved, evMachineGone: Free, evLost: Free},
	Reserved: {evCancel: Free, evAttach: Attaching, evMachineGone: Free, evLost: Free},
	Attaching: {
		evDone: Attached, evNotDone: Free, evUnknown: Doubtful,
		evLost: Free, evFound: Attached, evMachineGone: Free,
	},
	Attached: {evDetach: Detaching, evLost: Free, evFound: Attached, evMachineGone: Free},
	Detaching: {
		evDone: Free, evNotDone: Attached, evUnknown: Doubtful, evGuestLetGo: Ejected,
		evLost: Free, evFound: Attached, evMachineGone: Free,
	},
	Ejected: {evDetach: Detaching, evAttach: Attaching, evLost: Free, evFound: Ejected, evMachineGone: Free},
	Doubtful: {
		evDetach: Detaching, evAttach: Attaching,
		evLost: Free, evFound: Attached, evMachineGone: Free,
	},
}

// next returns the state after event ev in state s.
func next(s State, ev event) (State, error) {
	to, ok := transitions[s][ev]
	if !ok {
		return s, fmt.Errorf("uvm: event %d cannot occur in state %s", ev, s)
	}
	return to, nil
}
