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

// waitTime bounds the wait for processes that begin or end.
const waitTime = 20 * time.Second

// Roots is what containers need of whoever mounts their roots.
type Roots interface {
	// CheckPath accepts the paths that a root may have.
	CheckPath(path string) error
	// Hold keeps all mounts as they are until release is called. It fails when nothing is mounted at root, or
	// will not be for long.
	Hold(root string) (release func(), err error)
	// Still keeps all mounts as they are until release is called.
	Still() (release func())
	// RemoveDir removes the directory of a container if it is empty.
	RemoveDir(container string)
}

// Table is all containers and processes of hosts. Its methods may be called concurrently.
type Table struct {
	log   *slog.Logger
	spawn *Spawner
	roots Roots
	procs processes
	crun  *crun.Runtime // nil: there is none
	state string        // the folder of instances
	pause string        // a program that waits as the first process of instances; empty: see UseRuntime

	init string // a program that begins containers that ask for it; empty: there is none

	networks network.Networks // nil: there are none

	mu         sync.Mutex
	containers map[string]*container
}

// New returns an empty table, by which no container runs before UseRuntime.
func New(log *slog.Logger, spawn *Spawner, roots Roots) *Table {
	return &Table{log: log, spawn: spawn, roots: roots, containers: map[string]*container{}}
}

// UseRuntime has containers run by crun, or a program like it, from now on. What belongs to those that run is in a
// folder of its own below dir, by which other processes find it.
//
// Where pause is the path of a program, this process is to outlive all containers, and nobody else runs any in dir: a
// process that is not a container's first then joins what runs in it, begun by pause where nothing does, so that what
// it leaves in the background outlives it. Without, such a process begins an instance and ends it.
func (t *Table) UseRuntime(r *crun.Runtime, dir, pause string) {
	t.crun, t.state, t.pause = r, dir, pause
}

// keeps reports whether containers go on without the process that began them.
func (t *Table) keeps() bool { return t.pause != "" }

// Any reports whether any process runs.
func (t *Table) Any() bool { return len(t.procs.running("", true)) > 0 }

// Run runs a program of this system to its end, or until ctx ends.
func (t *Table) Run(ctx context.Context, path string, args ...string) error {
	return t.spawn.Run(ctx, path, args...)
}

// Passing reports whether a command line is that of a pause, which ends when nothing else runs beside it.
func (t *Table) Passing(commandLine string) bool {
	return t.keeps() && strings.HasPrefix(commandLine, pausePath+"\x00")
}

// InRoot returns a container that runs in a root, or "", and its programs. Containers that are about to end are
// waited for, so that they do not hold mounts any more.
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

// RootGone ends and forgets the containers of a root that is not mounted any more.
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
