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
	self  string // this program, to be started again
	spawn *Spawner
	roots Roots
	procs processes
	crun  *crun.Runtime // nil: the containers' first process is this program
	state string        // the folder of instances

	mu         sync.Mutex
	containers map[string]*container
}

// New returns an empty table. self is the program that is started as the first process of each container; its
// main calls [Stage] first thing.
func New(log *slog.Logger, self string, spawn *Spawner, roots Roots) *Table {
	return &Table{log: log, self: self, spawn: spawn, roots: roots, containers: map[string]*container{}}
}

// UseRuntime has containers run by crun, or a program like it, from now on. What belongs to those that run is in a
// folder of its own below dir, by which other processes find it.
func (t *Table) UseRuntime(r *crun.Runtime, dir string) { t.crun, t.state = r, dir }

// Any reports whether any process runs.
func (t *Table) Any() bool { return len(t.procs.running("", true)) > 0 }

// Run runs a program of this system to its end, or until ctx ends.
func (t *Table) Run(ctx context.Context, path string, args ...string) error {
	return t.spawn.Run(ctx, path, args...)
}

// Passing reports whether a command line is that of a container's first process, which ends with the others.
func (t *Table) Passing(commandLine string) bool {
	return strings.HasPrefix(commandLine, StageName+"\x00")
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
		if !c.settle() {
			t.mu.Lock()
			delete(t.containers, c.id)
			t.mu.Unlock()
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
