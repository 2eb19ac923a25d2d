package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// A template is a machine of a kind that was saved when its guest was ready and idle; others are loaded from it. It is
// a file: the guest's memory, and behind it what QEMU writes of the devices. The first machine of a kind that boots is
// saved before anybody has it, and goes on: no container, no host and no secret has ever been in a template. Its agent,
// as that of the first one, does nothing more before it has been given random numbers and the time of the host
// (hcsschema.ResourceTemplate).

// guestMemory is the memory of a machine, where that is a file.
type guestMemory struct {
	f *os.File
	// share: what the machine writes is in the file. Otherwise it is the machine's own, and the file as it was.
	share bool
	key   string   // of the template that it is from; empty: a template is made of it
	state *os.File // at the state that the machine is loaded from; nil: it boots
}

// TemplateInfo is what is known of a template.
type TemplateInfo struct {
	Key   string    `json:"key"`
	Bytes int64     `json:"bytes"` // on disk
	Used  time.Time `json:"used"`  // last
	VMs   int       `json:"vms"`   // that run and share its memory
}

// ErrTemplateBusy says that another process makes a template at this time.
var ErrTemplateBusy = errors.New("another process makes a template of a VM at this time")

// errNotLoaded: the template is of no use.
var errNotLoaded = errors.New("the machine cannot be loaded")

// entropySize is what a guest that was loaded is given, in bytes.
const entropySize = 64

// connecting is connect for the machine: the guest of one that was loaded or saved is renewed first, by whoever is the
// first to reach it then. Others ask in vain, as only the guest knows.
func (d description) connecting(connect connectFunc) connectFunc {
	if d.Template == "" && !d.Saved {
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
	if g == nil {
		return m.goOn(ctx)
	}
	if g.state == nil {
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

// goOn has a machine go on that was saved, or is being saved or loaded by a process that was killed meanwhile: QEMU does
// so to the end. Where the loading had not begun the machine ends.
func (m *Machine) goOn(ctx context.Context) error {
	if m.desc.Template == "" && !m.desc.Saved {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stateTime,
		fmt.Errorf("not within %s: %w", stateTime, context.DeadlineExceeded))
	defer cancel()
	var migration, machine struct {
		Status string `json:"status"`
	}
	for {
		err := m.qmp.do(ctx, "query-migrate", nil, &migration)
		if err == nil && slices.Contains([]string{"", "completed", "failed", "cancelled"}, migration.Status) {
			break
		}
		select {
		case <-time.After(statePoll):
		case <-ctx.Done():
			err = errors.Join(err, context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("qemu: machine %s: wait for the end of its saving: %w", m.desc.ID, m.explain(err))
		}
	}
	err := m.qmp.do(ctx, "query-status", nil, &machine)
	switch {
	case err != nil:
	case machine.Status == "postmigrate":
		err = m.qmp.do(ctx, "cont", nil, nil)
	case machine.Status == "inmigrate":
		err = errors.Join(fmt.Errorf("%w: who started it ended before it was loaded", vmm.ErrGone), m.proc.kill())
	}
	if err == nil {
		err = m.saved()
	}
	if err != nil {
		return fmt.Errorf("qemu: machine %s: go on after it was saved: %w", m.desc.ID, m.explain(err))
	}
	return nil
}

// saved notes that the machine's state is neither saved nor loaded any more.
func (m *Machine) saved() error {
	err := os.Remove(filepath.Join(m.dir, savingFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// awaitSaving waits while a machine is saved or loaded, and finishes that where who did it was killed.
func awaitSaving(ctx context.Context, dir string, c Config) error {
	if _, err := os.Stat(filepath.Join(dir, savingFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	m, err := open(ctx, dir, c)
	if err != nil {
		return err
	}
	return m.Close()
}
