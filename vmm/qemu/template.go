package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/stratavm/strata/hcsschema"
)

// A template is a machine of a kind that was saved when its guest was ready and idle; others are loaded from it. It is
// a file: the guest's memory, and behind it what QEMU writes of the devices. No container, no host and no secret has
// ever been in it, as a machine is booted for it alone; and its agent does nothing before it has been given random
// numbers and the time of the host that loads it (hcsschema.ResourceTemplate).

// guestMemory is the memory of a machine, where that is a file.
type guestMemory struct {
	f *os.File
	// share: what the machine writes is in the file. Otherwise it is the machine's own, and the file as it was.
	share bool
	key   string   // of the template that it is from; empty: a template is made in it
	state *os.File // at the state that the machine is loaded from; nil: it boots
}

// errNotLoaded: the template is of no use.
var errNotLoaded = errors.New("the machine cannot be loaded")

// entropySize is what a guest that was loaded is given, in bytes.
const entropySize = 64

// connecting is connect for the machine: the guest of one that was loaded is renewed first, by whoever is the first to
// reach it. Later ones ask in vain, as only the guest knows.
func (d description) connecting(connect connectFunc) connectFunc {
	if d.Template == "" {
		return connect
	}
	return func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
		g, err := connect(ctx, conn, log)
		if err != nil {
			return nil, err
		}
		r := hcsschema.TemplateRenewal{Entropy: make([]byte, entropySize)}
		rand.Read(r.Entropy) // it does not fail
		r.Time = time.Now().UnixNano()
		err = g.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
			ResourceType: hcsschema.ResourceTemplate, Settings: r})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("renew the guest: %w", err), g.Close())
		}
		return g, nil
	}
}

// stateTime bounds the saving and the loading of what is no memory, half a MiB.
const stateTime = 20 * time.Second

// statePoll is the time between two looks at QEMU's progress.
const statePoll = 2 * time.Millisecond

// moveState has QEMU begin to save or load its state, by the command given, and waits until ended says so.
func moveState(ctx context.Context, q *qmpClient, command string, f *os.File,
	ended func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stateTime,
		fmt.Errorf("not within %s: %w", stateTime, context.DeadlineExceeded))
	defer cancel()
	capability := map[string]any{"capability": "x-ignore-shared", "state": true}
	err := q.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []any{capability}}, nil)
	if err == nil {
		err = q.doWith(ctx, "getfd", map[string]any{"fdname": "state"}, nil, f)
	}
	if err == nil {
		err = q.do(ctx, command, map[string]any{"uri": "fd:state"}, nil)
	}
	for err == nil {
		var done bool
		if done, err = ended(ctx); done || err != nil {
			return err
		}
		select {
		case <-time.After(statePoll):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return err
}

// load reads the state of a machine that is one of a template, and the machine goes on. When it is of no use QEMU ends.
func (m *Machine) load(ctx context.Context, g *guestMemory) error {
	if g == nil || g.state == nil {
		return nil
	}
	err := moveState(ctx, m.qmp, "migrate-incoming", g.state, func(ctx context.Context) (bool, error) {
		var s struct {
			Status string `json:"status"`
		}
		err := m.qmp.do(ctx, "query-status", nil, &s)
		return s.Status != "inmigrate", err
	})
	if err != nil {
		return fmt.Errorf("qemu: machine %s: load the template %s: %w: %w%s", m.desc.ID, g.key, errNotLoaded, err,
			logTail(m.dir))
	}
	return nil
}
