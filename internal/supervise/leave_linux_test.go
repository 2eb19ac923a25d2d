package supervise

import (
	"context"
	"errors"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// TestLeave: programs that are left run on without a client, however many they are, and with the container's folder and
// user; one that cannot be started is an error.
func TestLeave(t *testing.T) {
	b := newBox(t)
	var left []*process
	b.server.Started(Program{Process: b.main, Base: vmm.ProcessSpec{Env: []string{"A=1"}, Dir: "/srv"},
		Exec: func(_ context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
			if spec.Args[0] != "sleep" {
				return nil, vmm.ErrProgramNotFound
			}
			p := newProcess(spec)
			left = append(left, p)
			return p, nil
		}})
	for range maxClients + 10 {
		if err := b.client.Leave(t.Context(), vmm.ProcessSpec{Args: []string{"sleep"}, Terminal: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.client.Leave(t.Context(), vmm.ProcessSpec{Args: []string{"none"}}); !errors.Is(err, vmm.ErrProgramNotFound) {
		t.Errorf("a program that is not there: %v", err)
	}
	if err := b.client.Signal(t.Context(), 28); err != nil {
		t.Errorf("beside them nothing can be asked: %v", err)
	}
	for _, p := range left {
		if s := p.spec; p.ended || s.Dir != "/srv" || s.Stdin != nil || s.Stdout == nil || len(p.signals) > 0 {
			t.Fatalf("left: ended %v, signals %v, %+v", p.ended, p.signals, s)
		}
		p.exit(0)
	}
	b.main.exit(0)
	b.server.Finish(Exit{})
}
