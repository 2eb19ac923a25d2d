package uvm

import "fmt"

// State is where a resource stands.
type State uint8

// The states of a resource. See the package comment.
const (
	Free State = iota
	Reserved
	Attaching
	Attached
	Detaching
	Ejected  // released by the guest, not by the host
	Doubtful // a change ended without telling whether it took effect
)

var stateNames = [...]string{"free", "reserved", "attaching", "attached", "detaching", "ejected", "doubtful"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText writes the state by name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name of a state.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("uvm: unknown state %q", b)
}

// event is what happens to a resource.
type event uint8

const (
	evReserve     event = iota // a slot or name was set aside
	evCancel                   // the reservation was given up
	evAttach                   // Add is about to be applied
	evDetach                   // Remove is about to be applied
	evDone                     // the change under way took effect
	evNotDone                  // the change under way had no effect
	evUnknown                  // the change under way may have taken effect
	evGuestLetGo               // Remove: the guest half took effect, the host half of this device did not
	evLost                     // the resource is known not to exist (any more)
	evFound                    // the resource is known to exist
	evMachineGone              // and everything in it
	numEvents
)

// transitions is the whole state machine: for each state, the events that may happen in it and the
// state they lead to. What is not listed is a mistake of this package.
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

// next returns the state that ev leads to from s.
func next(s State, ev event) (State, error) {
	to, ok := transitions[s][ev]
	if !ok {
		return s, fmt.Errorf("uvm: event %d cannot happen to a resource that is %s", ev, s)
	}
	return to, nil
}
