package stdio

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// output is a FIFO or file that a process writes to. A nil one is not connected.
type output struct {
	f       *os.File
	dropped atomic.Bool

	mu    sync.Mutex
	limit time.Duration // how long it may take nothing before it is dropped; 0: for ever
}

func (o *output) writer() io.Writer {
	if o == nil {
		return nil
	}
	return o
}

// Write implements io.Writer. It blocks until somebody reads. What nobody can read any more is thrown away, as the
// program is not to end by that.
func (o *output) Write(b []byte) (int, error) {
	for done := 0; done < len(b) && !o.dropped.Load(); {
		o.setDeadline()
		n, err := o.f.Write(b[done:])
		done += n
		if err != nil && (n == 0 || !os.IsTimeout(err)) {
			o.dropped.Store(true)
		}
	}
	return len(b), nil
}

// setDeadline gives the next write its time, and wakes one that blocks for longer.
func (o *output) setDeadline() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.limit > 0 {
		_ = o.f.SetWriteDeadline(time.Now().Add(o.limit)) // a file has none
	}
}

func (o *output) giveUp(limit time.Duration) {
	if o == nil {
		return
	}
	o.mu.Lock()
	shorter := o.limit == 0 || limit < o.limit
	if shorter {
		o.limit = limit
	}
	o.mu.Unlock()
	if shorter {
		o.setDeadline()
	}
}

func (o *output) close() {
	if o != nil {
		o.dropped.Store(true)
		_ = o.f.Close() // what is written is written; called twice, it was closed
	}
}
