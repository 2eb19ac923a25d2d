package procs

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/network"
)

// waitTime bounds the wait for processes to start or end.
const waitTime = 20 * time.Second

// Roots manages the mounted roots of containers.
type Roots interface {
	// CheckPath returns an error unless path may be a root.
	CheckPath(path string) error
	// Hold blocks unmounting until release is called. It returns an error if root is not mounted or is being unmounted.
	Hold(root string) (release func(), err error)
	// Still blocks unmounting until release is called.
	Still() (release func())
	// RemoveDir removes the directory of a container if it is empty.
	RemoveDir(container string)
}

// Table has the containers and processes of all hosts. Its methods may be called concurrently.
type Table struct {
	log   *slog.Logger
	spawn *Spawner
	roots Roots
	procs processes
	crun  *crun.Runtime // nil: there is none
	state string        // the directory of instances
	pause string        // path of the pause program, see UseRuntime

	init string // the init program, see SetInit

	networks network.Networks // nil: there are none

	mu         sync.Mutex
	containers map[string]*container
}

// New returns an empty table. Containers can run only after UseRuntime.
func New(log *slog.Logger, spawn *Spawner, roots Roots) *Table {
	return &Table{log: log, spawn: spawn, roots: roots, containers: map[string]*container{}}
}

// UseRuntime sets the runtime that runs containers, crun or runc. Each instance has a directory below dir, by which
// other processes find it.
//
// If pause is the path of a program, this process must outlive all containers and be the only one that uses dir. A
// process that is not a container's first then joins the running instance, or one that is started with pause as its
// first process, so that its background processes outlive it. If pause is empty, such a process starts an instance that
// ends with it.
func (t *Table) UseRuntime(r *crun.Runtime, dir, pause string) {
	t.crun, t.state, t.pause = r, dir, pause
}

// keeps reports whether instances may outlive the process that started them: there is a pause program.
func (t *Table) keeps() bool { return t.pause != "" }

// Any reports whether any process runs.
func (t *Table) Any() bool { return len(t.procs.running("", true)) > 0 }

// Run runs a program of this system to its end, or until ctx ends.
func (t *Table) Run(ctx context.Context, path string, args ...string) error {
	return t.spawn.Run(ctx, path, args...)
}

// Passing reports whether a command line is that of a pause process, which is ended when nothing else runs beside it.
func (t *Table) Passing(commandLine string) bool {
	return t.keeps() && strings.HasPrefix(commandLine, pausePath+"\x00")
}

// InRoot returns a container that runs in a root, or "", and its programs. It waits for containers that are ending, so
// that they do not keep mounts busy.
func (t *Table) InRoot(root string) (container string, programs []string) {
	for _, c := range t.containersAt(root) {
		if !c.settle() {
			continue
		}
		for _, p := range t.procs.running(c.id, false) {
			name := strconv.Quote(p.name)
			programs = append(programs, fmt.Sprintf("program %d (%s)", p.id, name[1:len(name)-1]))
		}
		return c.id, programs
	}
	return "", nil
}

// RootGone removes the containers of a root that was unmounted.
func (t *Table) RootGone(root string) {
	for _, c := range t.containersAt(root) {
		if c.retire() {
			t.forget(c)
			c.end()
		}
	}
}

// StopAll kills all processes, and waits for those in containers until ctx ends.
func (t *Table) StopAll(ctx context.Context) {
	for _, p := range t.procs.running("", false) {
		_ = p.signal(int(syscall.SIGKILL))
	}
	t.mu.Lock()
	containers := make([]*container, 0, len(t.containers))
	for _, c := range t.containers {
		containers = append(containers, c)
	}
	t.mu.Unlock()
	for _, c := range containers {
		_ = c.stop(ctx)
	}
}

func (t *Table) containersAt(root string) []*container {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*container
	for _, c := range t.containers {
		if c.root == root {
			out = append(out, c)
		}
	}
	return out
}
