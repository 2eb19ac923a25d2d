package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/plaintext"
)

// status shows a message on a terminal until done is called. Elsewhere, and with --json, it does nothing.
func (e *env) status(format string, args ...any) (done func()) {
	if _, tty := terminal(e.stderr); !tty || e.json {
		return func() {}
	}
	fmt.Fprintf(e.stderr, "\r\x1b[K%s", plaintext.Sprintf(format, args...))
	return func() { fmt.Fprint(e.stderr, "\r\x1b[K") }
}

// waiting shows a message if done is not called within after: by status on a terminal, else as a line. done is
// idempotent and may be called concurrently.
func (e *env) waiting(after time.Duration, format string, args ...any) (done func()) {
	var mu sync.Mutex
	over, erase := false, func() {}
	t := time.AfterFunc(after, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if _, tty := terminal(e.stderr); tty && !e.json {
			erase = e.status(format, args...)
			return
		}
		e.say("strata: "+format, args...)
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		t.Stop()
		if !over {
			over = true
			erase()
		}
	}
}
