package qemu

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// TestDialOfStoppedQEMU: who connects to a QEMU that takes no connections waits until it does, or as long as it likes,
// however many have waited before.
func TestDialOfStoppedQEMU(t *testing.T) {
	dir := t.TempDir()
	f, err := listenSocket(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	errTired := errors.New("tired")
	dial := func(d time.Duration) (net.Conn, error) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), d, errTired)
		defer cancel()
		return dialSocket(ctx, dir, "x.sock")
	}
	waiting := 0
	for {
		c, err := dial(2 * dialPause)
		if err != nil {
			if !errors.Is(err, errTired) {
				t.Errorf("got %v after %d, want %v", err, waiting, errTired)
			}
			break
		}
		defer c.Close()
		if waiting++; waiting > 100 {
			t.Fatal("the queue has no end: nothing is tested")
		}
	}
	done := make(chan error)
	go func() {
		c, err := dial(time.Minute)
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	for range waiting + 1 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if err := <-done; err != nil {
		t.Errorf("when there is room: %v", err)
	}
}
