package argon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
)

// Options are the options of Open.
type Options struct {
	// Dir is the machine's own folder; created if it does not exist. Empty: the records are kept in memory only, and a
	// removal is attempted even if there is no record.
	Dir string
	ID  string // of a new machine; empty: the name of Dir
	// Boot identifies this boot of the system. Empty: that of the system.
	Boot string
	// Host makes the calls of the platform.
	Host   wclayer.Host
	Logger *slog.Logger // nil: silent
}

// Machine is this Windows host. All methods may be called concurrently.
type Machine struct {
	id      string
	host    wclayer.Host
	log     *slog.Logger
	records *records
	engine  *applyengine.Engine
	life    context.Context
	end     context.CancelCauseFunc
}

var (
	_ vmm.Machine      = (*Machine)(nil)
	_ vmm.VolumePather = (*Machine)(nil)
)

// Open opens the machine in a folder, or creates one. Only one Machine of a folder may apply changes at a time.
func Open(o Options) (*Machine, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ID == "" && o.Dir != "" {
		o.ID = filepath.Base(o.Dir)
	}
	m := &Machine{id: o.ID, host: o.Host, log: o.Logger}
	var err error
	if m.records, err = openRecords(o.Dir, o.Boot); err != nil {
		return nil, fmt.Errorf("open this Windows host as a machine: %w", err)
	}
	m.life, m.end = context.WithCancelCause(context.Background())
	m.engine = applyengine.New(m.life, vmm.Windows, nil, o.Logger)
	return m, nil
}

// ID implements vmm.Machine.
func (m *Machine) ID() string { return m.id }

// OS implements vmm.Machine.
func (m *Machine) OS() vmm.OS { return vmm.Windows }

func limits() vmm.Limits { return vmm.Limits{WritableLayers: true, Observes: true} }

// Limits implements vmm.Machine.
func (m *Machine) Limits() vmm.Limits { return limits() }

// Observe implements vmm.Machine. It returns what is recorded.
func (m *Machine) Observe(ctx context.Context) (vmm.Observation, error) {
	if err := errors.Join(m.Err(), ctx.Err()); err != nil {
		return vmm.Observation{}, err
	}
	return m.records.observation(), nil
}

// VolumePath implements vmm.VolumePather.
func (m *Machine) VolumePath(ctx context.Context, folder string) (string, error) {
	path, err := m.host.MountPath(ctx, folder)
	if err == nil && path == "" {
		err = fmt.Errorf("the scratch %s has no volume: it is not attached", folder)
	}
	return path, err
}

// Exec implements vmm.Machine.
func (m *Machine) Exec(_ context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%q: programs in containers on the Windows host itself: %w", spec.Args, errors.ErrUnsupported)
}

// FindProcess implements vmm.Machine. Running programs is not supported.
func (m *Machine) FindProcess(_ context.Context, _ string, pid uint32) (vmm.Process, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("find process %d on the Windows host itself: %w", pid, errors.ErrUnsupported)
}

// DeleteContainerState implements vmm.Machine. As no programs can run, it does nothing.
func (m *Machine) DeleteContainerState(context.Context, string) error { return m.Err() }

// Stacks implements vmm.Machine. As there is no agent, the result is empty.
func (m *Machine) Stacks(context.Context) (string, error) { return "", m.Err() }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.life.Done() }

// Err implements vmm.Machine.
func (m *Machine) Err() error { return context.Cause(m.life) }

// Shutdown implements vmm.Machine: it removes everything in reverse order. The error names what could not be removed;
// the machine is then still usable.
func (m *Machine) Shutdown(ctx context.Context) error {
	if m.Err() != nil {
		return nil
	}
	all := m.records.changes()
	slices.Reverse(all)
	var errs []error
	for _, c := range all {
		errs = append(errs, m.Apply(ctx, c.Inverse()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what is mounted on this host: %w", err)
	}
	m.end(fmt.Errorf("machine %s: everything on this host is unmounted: %w", m.id, vmm.ErrGone))
	return nil
}

// Terminate implements vmm.Machine. There is nothing to kill, so it is the same as Shutdown.
func (m *Machine) Terminate(ctx context.Context) error { return m.Shutdown(ctx) }

// Close implements vmm.Machine. What is mounted stays. A call of the platform in progress continues; what it adds is
// recorded as doubtful when the machine is opened again.
func (m *Machine) Close() error {
	m.records.close()
	return nil
}
