package supervise

import (
	"encoding/binary"
	"io"
	"sync"
)

// maxInput is the flow-control window of a client's input in bytes: a client sends more only after kindTaken has
// acknowledged input. So the server never blocks on a program that does not read, and keeps handling the client's other
// frames and its disconnection.
const maxInput = 256 << 10

// inflow is the queue of a client's input that the program has not read yet.
type inflow struct {
	mu    sync.Mutex
	queue []byte
	over  bool          // the input has ended
	moved chan struct{} // signals that the queue or over has changed
}

func newInflow() *inflow { return &inflow{moved: make(chan struct{}, 1)} }

// put adds to the queue. It returns false if the client has exceeded maxInput.
func (f *inflow) put(b []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue)+len(b) > maxInput {
		return false
	}
	if !f.over {
		f.queue = append(f.queue, b...)
		f.wake()
	}
	return true
}

// end marks the end of the input.
func (f *inflow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.wake()
}

func (f *inflow) wake() {
	select {
	case f.moved <- struct{}{}:
	default:
	}
}

// take removes and returns what is queued, and whether the input has ended.
func (f *inflow) take() (b []byte, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, f.queue = f.queue, nil
	return b, f.over
}

// pump sends queued input to to, and calls taken after each, until the input has ended or stop is closed.
func (f *inflow) pump(to chan<- []byte, stop <-chan struct{}, taken func(n int)) {
	for {
		b, over := f.take()
		if len(b) == 0 {
			if over {
				return
			}
			select {
			case <-f.moved:
				continue
			case <-stop:
				return
			}
		}
		for len(b) > 0 {
			n := min(len(b), maxFrame)
			select {
			case to <- b[:n]:
				taken(n)
			case <-stop:
				return
			}
			b = b[n:]
		}
	}
}

// inputReader is the other end of pump, which the program reads.
type inputReader struct {
	from <-chan []byte   // closed at the end of the input
	over <-chan struct{} // closed when reading or writing ends
	rest []byte
}

// Read implements io.Reader.
func (r *inputReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		var ok bool
		select {
		case r.rest, ok = <-r.from:
			if !ok {
				return 0, io.EOF
			}
		case <-r.over:
			return 0, io.EOF
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// count returns the payload of a kindTaken frame.
func count(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
