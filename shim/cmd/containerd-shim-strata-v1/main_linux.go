// Command containerd-shim-strata-v1 is the containerd shim that runs containers in VMs, for example by
// ctr run --runtime io.containerd.strata.v1.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"

	"github.com/stratavm/strata/shim/internal/events"
	"github.com/stratavm/strata/shim/internal/manager"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/sandbox"
	"github.com/stratavm/strata/shim/internal/task"
)

var version = "devel" // set by the linker

func main() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   newService,
	})
	// No reaper: whoever starts a child process waits for it, or the child ends with this process.
	shim.RunShim(context.Background(), manager.Manager{Version: version}, func(c *shim.Config) {
		c.NoReaper, c.NoSubreaper = true, true
	})
}

const (
	endTimeout  = 3 * time.Second        // cleanup when the shim ends, for which containerd waits as long
	answerDelay = 300 * time.Millisecond // before exit: containerd wants ShutdownSandbox's response, unlike a task's
)

func newService(ic *plugin.InitContext) (any, error) {
	publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	down, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	ns, err := namespaces.NamespaceRequired(ic.Context)
	if err != nil {
		return nil, err
	}
	sd := down.(shutdown.Service)
	// Standard error is containerd's log.
	level := &slog.LevelVar{}
	level.Set(slog.LevelWarn)
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	queue := events.New(ic.Context, publisher.(shim.Publisher), logger)
	s := task.New(task.Config{Namespace: ns, Events: queue, End: sd.Shutdown, Logger: logger, Level: level,
		StartVM: func(ctx context.Context, o pod.Options) (task.Machine, error) { return pod.Start(ctx, o) }})
	sd.RegisterCallback(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			logger.Error("the end of the shim", "error", err)
		}
		return queue.Close(ctx)
	})
	return services{s, sandbox.New(s, func() { time.AfterFunc(answerDelay, sd.Shutdown) })}, nil
}

// services are the APIs that a shim serves.
type services struct {
	tasks   *task.Service
	sandbox *sandbox.Service
}

// RegisterTTRPC registers the services with a server.
func (s services) RegisterTTRPC(server *ttrpc.Server) error {
	return errors.Join(s.tasks.RegisterTTRPC(server), s.sandbox.RegisterTTRPC(server))
}
