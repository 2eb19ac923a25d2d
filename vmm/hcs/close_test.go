package hcs_test

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// blocked is a log handler and a writer that takes one thing and holds on to it until it is released.
type blocked struct {
	message          string // of the record; empty: any
	reached, release chan struct{}
	once             sync.Once
}

func newBlocked(message string) *blocked {
	return &blocked{message: message, reached: make(chan struct{}), release: make(chan struct{})}
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
func (b *blocked) Handle(_ context.Context, r slog.Record) error {
	if r.Message == b.message {
		b.block()
	}
	return nil
}

func (b *blocked) Write(p []byte) (int, error) {
	b.block()
	return len(p), nil
}

// returnsAfter checks that f does not return before b is released, and then without an error.
func (b *blocked) returnsAfter(t *testing.T, what string, f func() error) {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- f() }()
	<-b.reached
	synctest.Wait()
	select {
	case err := <-returned:
		t.Errorf("%s returned (%v) while something that it began still runs", what, err)
		close(b.release)
		return
	default:
	}
	close(b.release)
	if err := <-returned; err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// Close returns when nothing of the machine runs any more, whatever began it.
func TestCloseWaits(t *testing.T) {
	dial := func(t *testing.T, r *rig, m *hcs.Machine, port uint32) io.WriteCloser {
		c, err := r.sockets.Dial(m.RuntimeID(), hcs.ServiceID(port))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, tt := range map[string]struct {
		message string
		provoke func(*testing.T, *rig, *hcs.Machine)
	}{
		"for the guest's log": {"guest", func(t *testing.T, r *rig, m *hcs.Machine) {
			out := dial(t, r, m, hcs.LogPort)
			if _, err := io.WriteString(out, "a line\n"); err != nil {
				t.Error(err)
			}
		}},
		"for a service that failed": {"service of the guest", func(t *testing.T, r *rig, m *hcs.Machine) {
			if err := dial(t, r, m, hcs.EntropyPort).Close(); err != nil {
				t.Error(err)
			}
		}},
		"for the watch over the VM": {"utility VM is gone", func(_ *testing.T, r *rig, m *hcs.Machine) { r.s.Kill(m.ID()) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, hcstest.Options{})
				log := newBlocked(tt.message)
				r.host.Logger = slog.New(log)
				m := r.start(r.lcow(false))
				tt.provoke(t, r, m)
				<-log.reached
				log.returnsAfter(t, "Close", m.Close)
			})
		})
	}
}

// A process that is closed writes nothing any more to what its output goes to.
func TestProcessCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, hcstest.Options{Exec: func(_ hcstest.ProcessParameters, _ io.Reader, out, _ io.Writer) uint32 {
			io.WriteString(out, "words")
			return 0
		}})
		m := r.start(r.lcow(false))
		out := newBlocked("")
		p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"echo"}, Stdout: out})
		if err != nil {
			t.Fatal(err)
		}
		<-out.reached
		out.returnsAfter(t, "Close", p.Close)
	})
}
