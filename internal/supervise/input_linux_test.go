package supervise

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// TestProgramThatDoesNotRead: however much its clients have for it, they are heard, and their leaving is noticed.
func TestProgramThatDoesNotRead(t *testing.T) {
	b := newBox(t)
	started := make(chan *process, 2)
	b.server.Started(Program{Process: b.main, Exec: func(_ context.Context, s vmm.ProcessSpec) (vmm.Process, error) {
		p := newProcess(s)
		started <- p
		return p, nil
	}})
	for name, leave := range map[string]func(vmm.Process) error{
		"gone":     func(p vmm.Process) error { return p.Close() },
		"a signal": func(p vmm.Process) error { return errors.Join(p.Signal(t.Context(), 1), p.Close()) },
	} {
		p, err := b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"sleep"}, Stdin: &endless{}, Stdout: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		other := <-started
		for p.(*session).away.Load() <= maxInput-32<<10 { // until the other end holds all that was agreed on
			time.Sleep(time.Millisecond)
		}
		if err := leave(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-other.done
	}
	p, err := b.client.Attach(t.Context(), vmm.ProcessSpec{Stdin: &endless{}})
	if err != nil {
		t.Fatal(err)
	}
	for p.(*session).away.Load() <= maxInput-32<<10 {
		time.Sleep(time.Millisecond)
	}
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Error(err)
	}
	<-b.main.done
	b.server.Finish(Exit{Code: 143})
	if code, err := p.Wait(t.Context()); code != 143 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// endless is input without end.
type endless struct{}

func (*endless) Read(b []byte) (int, error) { return len(b), nil }

// TestMuchInput: input of any length arrives whole and in order.
func TestMuchInput(t *testing.T) {
	b := newBox(t)
	want := make([]byte, 5*maxInput+7)
	for i := range want {
		want[i] = byte(i ^ i>>8 ^ i>>16)
	}
	var out, errs safeBuffer
	p, err := b.client.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"echo"}, Stdin: bytes.NewReader(want),
		Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err != nil || out.String() != string(want) {
		t.Errorf("%d bytes, %v", len(out.String()), err)
	}
	a, err := b.client.Attach(t.Context(), vmm.ProcessSpec{Stdin: bytes.NewReader(want)})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(b.server.Input(), got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("attached: %v", err)
	}
	if err := errors.Join(p.Close(), a.Close()); err != nil {
		t.Error(err)
	}
}

// TestSilentSupervisor: one that is there and does not answer is an error, however long the caller would wait.
func TestSilentSupervisor(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	l, err := listen(dir) // and accepts nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unlisten(dir, l); err != nil {
			t.Error(err)
		}
	}()
	c := &Client{dir: dir, patience: 20 * time.Millisecond}
	_, aerr := c.Attach(t.Context(), vmm.ProcessSpec{})
	_, serr := c.Stats(t.Context())
	for i, err := range []error{c.Signal(t.Context(), 15), aerr, serr} {
		if !errors.Is(err, errSilent) {
			t.Errorf("request %d: %v", i, err)
		}
	}
}
