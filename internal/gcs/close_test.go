package gcs

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stratavm/strata/vmm"
)

// blocked is a log handler and a writer that holds on to the first thing it gets until it is released.
type blocked struct {
	reached, release chan struct{}
	once             sync.Once
}

func newBlocked() *blocked {
	return &blocked{reached: make(chan struct{}), release: make(chan struct{})}
}

func (b *blocked) block() {
	b.once.Do(func() {
		close(b.reached)
		<-b.release
	})
}

func (b *blocked) Enabled(context.Context, slog.Level) bool { return true }
func (b *blocked) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *blocked) WithGroup(string) slog.Handler            { return b }

func (b *blocked) Handle(context.Context, slog.Record) error {
	b.block()
	return nil
}

func (b *blocked) Write(p []byte) (int, error) {
	b.block()
	return len(p), nil
}

// isAwaited checks that f returns only after b was released.
func (b *blocked) isAwaited(t *testing.T, f func() error) {
	t.Helper()
	<-b.reached
	returned := make(chan error, 1)
	go func() { returned <- f() }()
	synctest.Wait()
	select {
	case err := <-returned:
		t.Errorf("Close returned (%v) while something that was begun here still runs", err)
		returned <- err
	default:
	}
	close(b.release)
	if err := <-returned; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Close of a Client waits for the bridge's reader, which logs what containers do.
func TestClientCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := against(t, nil)
		log := newBlocked()
		c.log = slog.New(log)
		b, err := EncodeMessage(Header{TypeNotification, 0}, &Notification{ContainerId: "web", Type: "GracefulExit"},
			LargestMaxMessage)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guest.Write(b); err != nil {
			t.Fatal(err)
		}
		log.isAwaited(t, c.Close)
	})
}

// Close of the multiplexer waits for who finds out which port a stream is for. (Its timers are not for a bubble.)
func TestTransportCloseWaits(t *testing.T) {
	host, guest := net.Pipe()
	h, g := muxPair(t, host, guest)
	log := newBlocked()
	h.log = slog.New(log)
	s, err := g.session.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(binary.LittleEndian.AppendUint32(nil, PortStdio+7)); err != nil {
		t.Fatal(err)
	}
	<-log.reached
	var released atomic.Bool
	go func() {
		time.Sleep(50 * time.Millisecond) // time for a Close that does not wait
		released.Store(true)
		close(log.release)
	}()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if !released.Load() {
		t.Error("Close returned while a stream is still looked at")
		<-log.release
	}
}

// Close of a process waits for the writer of its output.
func TestProcessCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := against(t, func(Header, []byte) []byte { return nil }) // it runs for ever
		p := &Process{c: c, pid: 1, done: make(chan struct{})}
		host, guest := net.Pipe()
		out := newBlocked()
		p.run(vmm.ProcessSpec{Stdout: out}, [3]net.Conn{1: host})
		if _, err := io.WriteString(guest, "words"); err != nil {
			t.Fatal(err)
		}
		out.isAwaited(t, p.Close)
	})
}

// A writer that blocks for ever does not keep Close for ever.
func TestProcessCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := against(t, func(Header, []byte) []byte { return nil })
		p := &Process{c: c, pid: 1, done: make(chan struct{})}
		host, guest := net.Pipe()
		out := newBlocked()
		p.run(vmm.ProcessSpec{Stdout: out}, [3]net.Conn{1: host})
		if _, err := io.WriteString(guest, "words"); err != nil {
			t.Fatal(err)
		}
		<-out.reached
		if err := p.Close(); err == nil {
			t.Error("nothing is said of the writer that blocks")
		}
		close(out.release)
	})
}

// The exit is known while a writer still blocks, for which Wait waits.
func TestExitBeforeOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := against(t, func(h Header, _ []byte) []byte { return answer(t, h, &WaitResponse{ExitCode: 3}) })
		p := &Process{c: c, pid: 1, done: make(chan struct{})}
		host, guest := net.Pipe()
		out := newBlocked()
		p.run(vmm.ProcessSpec{Stdout: out}, [3]net.Conn{1: host})
		if _, err := io.WriteString(guest, "words"); err != nil {
			t.Fatal(err)
		}
		guest.Close()
		<-p.Exited()
		out.isAwaited(t, func() error { _, err := p.Wait(t.Context()); return err })
	})
}
