package supervise

import (
	"encoding/binary"
	"io"
	"sync"
)

// maxInput bounds the input of a program that is on its way from one client, in bytes. A client sends more when it is
// told how much was taken. So the server never waits for a program that does not read, and hears what else a client
// says, and that it has gone.
const maxInput = 256 << 10

// inflow is the input of a program that is on its way from one client.
type inflow struct {
	mu    sync.Mutex
	queue []byte
	over  bool          // nothing is added any more
	moved chan struct{} // there is more, or it is over
}

func newInflow() *inflow { return &inflow{moved: make(chan struct{}, 1)} }

// put adds to the queue. It reports whether that was agreed on.
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

// end says that nothing follows.
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

// take returns what is queued.
func (f *inflow) take() (b []byte, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, f.queue = f.queue, nil
	return b, f.over
}

// pump hands on what is queued, and says so, until all is and it is over, or until stop.
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

// inputReader is the other end: it is read by the program.
type inputReader struct {
	from <-chan []byte   // closed at the end of the input
	over <-chan struct{} // nobody reads, or writes, any more
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

// count is what a frame says that tells how much was taken.
func count(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
