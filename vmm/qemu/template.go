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

// A template is a saved machine; other machines of the same kind are loaded from it. It is a file with the guest's
// memory, followed by the device state that QEMU writes. A machine is saved once it has booted and its guest is idle,
// before any other process can use it: no container, host or secret has ever been in a template. The saved machine may
// then resume. The agent of a saved or loaded machine does nothing more until the host has given it random numbers and
// the time (hcsschema.ResourceTemplate).

// guestMemory is the file that backs the guest's memory, for machines that are saved as or loaded from a template.
type guestMemory struct {
	f *os.File
	// share makes the guest's writes go to the file. Otherwise its pages are copied on write and the file is unchanged.
	share bool
	key   string   // of the template that it was loaded from; empty: the machine is to be saved as one
	state *os.File // positioned at the device state to load; nil: the machine boots
}

// TemplateInfo describes a template.
type TemplateInfo struct {
	Key   string    `json:"key"`
	Bytes int64     `json:"bytes"` // on disk
	Used  time.Time `json:"used"`  // last time
	VMs   int       `json:"vms"`   // running machines that share its memory
}

// ErrTemplateBusy is matched by the error when another process is making or removing templates.
var ErrTemplateBusy = errors.New("another process makes a template of a VM at this time")

// errNotLoaded is matched by the error when the template cannot be loaded and should be removed.
var errNotLoaded = errors.New("the machine cannot be loaded")

// entropySize is the number of random bytes sent to a saved or loaded guest.
const entropySize = 64

// connecting returns the connectFunc of the machine. After connecting to a saved or loaded guest it renews it, if no
// other process has done so. Only the guest knows whether that is needed, so it is requested on each connection.
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
		rand.Read(r.Entropy) // never fails
		r.Time = time.Now().UnixNano()
		err = g.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
			ResourceType: hcsschema.ResourceTemplate, Settings: r})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("renew the guest: %w", err), g.Close())
		}
		return g, nil
	}
}

// stateTime bounds saving and loading the device state, which takes half a MiB.
const stateTime = 20 * time.Second

// statePoll is the interval at which QEMU's progress is polled.
const statePoll = 2 * time.Millisecond

// moveState makes QEMU save its state to f or load it from there, with the given command, and waits until ended reports
// true.
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

// load loads the state in g into the machine, which then runs; if it cannot be loaded, QEMU exits. If g is nil, load
// calls goOn; if g has no state, the machine boots and load does nothing.
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

// goOn resumes a machine that was saved, after waiting for the end of a save or load that an earlier process may have
// been killed during: QEMU completes it by itself. If loading had not begun, goOn kills the machine.
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

// saved records that saving or loading the machine has ended.
func (m *Machine) saved() error {
	err := os.Remove(filepath.Join(m.dir, savingFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// awaitSaving waits while the machine in dir is being saved or loaded, and completes that if the process doing it was
// killed.
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
