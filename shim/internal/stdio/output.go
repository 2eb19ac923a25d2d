package stdio

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// output is a FIFO, file or logger's pipe that a process writes to. A nil output is not connected.
type output struct {
	f       *os.File
	dropped atomic.Bool // writes are discarded

	mu    sync.Mutex
	limit time.Duration // how long a write may block before the output is dropped; 0: no limit
}

func (o *output) writer() io.Writer {
	if o == nil {
		return nil
	}
	return o
}

// Write implements io.Writer. It blocks until the data is read, or giveUp's limit expires. After that, and after an
// error of the file, data is discarded without an error, so that the program does not fail.
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

// setDeadline sets the write deadline to limit from now, also for a pending write.
func (o *output) setDeadline() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.limit > 0 {
		_ = o.f.SetWriteDeadline(time.Now().Add(o.limit)) // fails for a regular file
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
		_ = o.f.Close() // may be closed already
	}
}
