package local

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// slowWriter takes what it gets when it is released.
type slowWriter struct{ reached, release chan struct{} }

func (w slowWriter) Write(p []byte) (int, error) {
	close(w.reached)
	<-w.release
	return len(p), nil
}

// A process that is closed writes nothing any more to what its output goes to; a writer that blocks for ever
// is an error.
func TestProcessCloseWaits(t *testing.T) {
	for name, after := range map[string]time.Duration{"a slow writer": time.Second, "a blocked writer": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				out := slowWriter{make(chan struct{}), make(chan struct{})}
				p := &process{conns: []net.Conn{ours}}
				p.output.Go(func() { _, _ = io.Copy(out, ours) })
				if _, err := io.WriteString(theirs, "words"); err != nil {
					t.Fatal(err)
				}
				<-out.reached
				begun := time.Now()
				time.AfterFunc(after, func() { close(out.release) })
				err := p.Close()
				if waited, want := time.Since(begun), min(after, closeTime); waited != want || (err == nil) != (after < closeTime) {
					t.Errorf("Close returned after %v instead of %v: %v", waited, want, err)
				}
				time.Sleep(after)
			})
		})
	}
}
