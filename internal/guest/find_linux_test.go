package guest

import (
	"errors"
	"log/slog"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
	"github.com/stratavm/strata/vmm"
)

// bridge is one host's with a runtime; its streams are not tried.
func bridge(t *testing.T, rt gcsserver.Runtime) *gcs.Client {
	t.Helper()
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- gcsserver.Serve(t.Context(), guest, nil, rt, slog.New(slog.DiscardHandler)) }()
	noPorts := gcs.Sockets(func(uint32) (net.Listener, error) { return nil, gcs.ErrPortTaken })
	c, err := gcs.NewClient(t.Context(), host, noPorts, gcs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestFindProcess: a host finds a process that another host has started, as long as it runs and when it has ended.
func TestFindProcess(t *testing.T) {
	rt := newLinuxRuntime(slog.New(slog.DiscardHandler), procs.NewSpawner(false),
		mounts.Config{Base: t.TempDir(), Devices: &mounts.Devices{}})
	p, err := bridge(t, rt).Exec(t.Context(),
		vmm.ProcessSpec{Args: []string{"sleep", "1000"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	other := bridge(t, rt)
	q, err := other.FindProcess(t.Context(), "", p.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Signal(t.Context(), int(unix.SIGTERM)); err != nil {
		t.Error(err)
	}
	ended, err := p.Wait(t.Context())
	if err != nil || ended != 128+int(unix.SIGTERM) {
		t.Errorf("the process ended with %d, %v", ended, err)
	}
	later, err := bridge(t, rt).FindProcess(t.Context(), "", p.Pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []vmm.Process{q, later} {
		if code, err := q.Wait(t.Context()); code != ended || err != nil {
			t.Errorf("the process found again ended with %d, %v; want %d", code, err, ended)
		}
	}
	for name, of := range map[string]struct {
		container string
		pid       uint32
	}{"never was": {"", p.Pid() + 1}, "is in no container": {"web", p.Pid()}} {
		if _, err := other.FindProcess(t.Context(), of.container, of.pid); !errors.Is(err, vmm.ErrNoProcess) {
			t.Errorf("a process that %s: %v, want an error matching %q", name, err, vmm.ErrNoProcess)
		}
	}
}
