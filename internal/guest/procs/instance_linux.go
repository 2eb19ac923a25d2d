package procs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/lockfile"
)

// runtimeTime bounds a call of the program that runs containers.
const runtimeTime = time.Minute

// instance is a container that runs, from its first process's start to that process's end. It has a folder:
//
//	owner          its lock tells that the process that supervises the instance lives, or a start is under way
//	instance.json  an instanceRecord
//	config.json    the container's document
//	state, log     of the program that runs it
type instance struct {
	t      *Table
	c      *container
	bundle crun.Bundle
	owner  *os.File
	like   *specs.Process // of the document
	fixed  []string       // places of the document that are read-only
	exited chan struct{}  // closed when nothing runs in it any more
	joined []*os.File     // namespaces of other containers, while the first process is started
	stays  bool           // this process outlives it, see Table.UseRuntime

	mu      sync.Mutex
	pid     int // of the first process; 0: not started yet
	files   int // numbers those of exec
	closing bool
	instead syscall.Signal // what the first process was killed for
	pauses  bool           // the first process does nothing
}

// instanceRecord says what runs, to whoever finds the folder.
type instanceRecord struct {
	Container string `json:"container"`
	Root      string `json:"root"`
	Program   string `json:"program"`
}

const (
	ownerName  = "owner"
	recordName = "instance.json"
)

// newInstance creates the folder of an instance that has not begun.
func newInstance(t *Table, c *container) (*instance, error) {
	for {
		name := make([]byte, 8)
		_, _ = rand.Read(name) // it does not fail
		dir := filepath.Join(t.state, hex.EncodeToString(name))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		owner, err := lockfile.Try(filepath.Join(dir, ownerName), false, os.O_CREATE)
		if errors.Is(err, os.ErrNotExist) || err == nil && owner == nil {
			continue // swept away, for it was empty
		}
		if err != nil {
			return nil, err
		}
		return &instance{t: t, c: c, bundle: crun.Bundle{Runtime: t.crun, Dir: dir}, owner: owner,
			exited: make(chan struct{}), stays: t.keeps()}, nil
	}
}

func (i *instance) ending() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.closing
}

// end kills the first process, and with it all others.
func (i *instance) end() {
	i.mu.Lock()
	pid := i.pid
	i.mu.Unlock()
	if pid != 0 {
		_ = i.t.spawn.signal(pid, syscall.SIGKILL) // it may just have ended
		_ = thaw(cgroupRoot, cgroupOf(i.bundle.Dir))
	}
}

// exec starts the first process, and any that follow in the same namespaces.
func (i *instance) exec(p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(i.t.crun.Timeout, runtimeTime))
	defer cancel()
	i.mu.Lock()
	begun, closing := i.pid != 0, i.closing
	i.mu.Unlock()
	switch {
	case closing:
		return nil, errEnding
	case begun:
		return i.another(ctx, p, cmd, pipes)
	}
	return i.begin(ctx, p, cmd, pipes)
}

// begin starts the first process, or removes the instance. p is nil for a pause.
func (i *instance) begin(ctx context.Context, p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	master, err := i.first(ctx, p, cmd, pipes)
	if err != nil {
		i.mu.Lock()
		i.closing = true
		i.mu.Unlock()
		err = errors.Join(err, i.remove())
		close(i.exited)
	}
	return master, err
}

// first starts the first process.
func (i *instance) first(ctx context.Context, p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	// The new namespace begins with a copy of all mounts. Until it has released them nothing can be
	// unmounted for good.
	release, err := i.t.roots.Hold(i.c.root)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", i.c.id, err)
	}
	defer release()
	defer i.leaveOthers()
	if err := i.describe(cmd, p, pipes); err != nil {
		return nil, err
	}
	started := make(chan struct{})
	var failed error
	run := func(ctx context.Context, o crun.Process) (int, *os.File, error) {
		o.Check = i.checkReadOnly()
		return i.bundle.Run(ctx, o)
	}
	pid, master, err := i.start(ctx, cmd, pipes, run, func(st syscall.WaitStatus) {
		i.mu.Lock()
		i.closing = true
		i.mu.Unlock()
		<-started
		if failed == nil {
			i.finish(p, st)
		}
	})
	failed = err
	if err == nil {
		i.mu.Lock()
		i.pid = pid
		i.mu.Unlock()
		if p != nil {
			p.started(i.signalFirst, master)
		}
	}
	close(started)
	return master, i.programNamed(cmd, err)
}

// another starts a further process.
func (i *instance) another(ctx context.Context, p *process, cmd command, pipes *stdioPipes) (*os.File, error) {
	i.mu.Lock()
	i.files++
	name := fmt.Sprintf("exec%d", i.files)
	root, err := openRoot(fmt.Sprintf("/proc/%d/root", i.pid)) // with what is mounted in it
	i.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) {
		return nil, errEnding
	}
	if err != nil {
		return nil, err
	}
	defer root.close()
	spec, err := processSpec(root, cmd, i.like)
	if err != nil {
		return nil, err
	}
	if err := checkDir(root, cmd, nil); err != nil {
		return nil, err
	}
	own(pipes, spec)
	started := make(chan struct{})
	run := func(ctx context.Context, o crun.Process) (int, *os.File, error) {
		defer i.t.still()()
		return i.bundle.Exec(ctx, name, spec, o)
	}
	pid, master, err := i.start(ctx, cmd, pipes, run, func(st syscall.WaitStatus) {
		<-started
		i.noteMemory(p, st)
		i.t.procs.finish(p, exitCode(st))
	})
	if err == nil {
		p.started(func(sig syscall.Signal) error { return i.t.spawn.signal(pid, sig) }, master)
	}
	close(started)
	if errors.Is(err, crun.ErrNotRunning) || err != nil && i.ending() {
		return nil, errEnding
	}
	return master, i.programNamed(cmd, err)
}

// errNotExecuted: a process ended before it became the program that was asked for.
var errNotExecuted = errors.New("the program cannot be executed")

// start starts a process by run. What becomes of it is told to exited, which may block.
func (i *instance) start(ctx context.Context, cmd command, pipes *stdioPipes,
	run func(context.Context, crun.Process) (int, *os.File, error), exited func(syscall.WaitStatus),
) (int, *os.File, error) {
	defer i.t.spawn.expect()()
	ended := make(chan struct{})
	var noexec bool
	pid, master, err := run(ctx, crun.Process{Stdio: pipes.child, Terminal: cmd.Terminal,
		Extra: []*os.File{i.owner}})
	if pid == 0 {
		i.t.spawn.mayLeave(cgroupOf(i.bundle.Dir))
		return 0, nil, err
	}
	adopted := i.t.spawn.adopt(ctx, pid, &noexec, func(st syscall.WaitStatus, _ bool) {
		close(ended)
		go exited(st)
	})
	err = errors.Join(err, adopted)
	if err == nil {
		err = awaitProgram(ctx, pid)
	}
	if err == nil && hasEnded(pid) {
		select {
		case <-ended:
			if noexec {
				err = errNotExecuted
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil {
		return pid, master, nil
	}
	if master != nil {
		master.Close()
	}
	if adopted == nil {
		_ = i.t.spawn.signal(pid, syscall.SIGKILL) // it may have ended
		select {
		case <-ended:
		case <-time.After(waitTime):
		}
	}
	return 0, nil, err
}

// describe writes the container's document and the record.
func (i *instance) describe(cmd command, p *process, pipes *stdioPipes) error {
	root, err := openRoot(i.c.root)
	if err != nil {
		return fmt.Errorf("container %s: %w", i.c.id, err)
	}
	defer root.close()
	if err := root.checkSystemDirs(); err != nil {
		return fmt.Errorf("container %s: %w", i.c.id, err)
	}
	spec, etc, err := i.c.document(i.t.crun, cgroupOf(i.bundle.Dir))
	if err == nil {
		err = root.checkPlaces(spec.Mounts)
	}
	if err == nil {
		net := i.t.networkOf(i.c.id)
		joinNetwork(spec, net)
		err = i.etcFiles(root, spec, etc, net)
	}
	if err == nil {
		err = i.joinOthers(spec)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", i.c.id, err)
	}
	program := ""
	if i.like = spec.Process; p != nil {
		program = p.name
	} else if err := i.t.addPause(spec); err != nil {
		return fmt.Errorf("container %s: %w", i.c.id, err)
	}
	if spec.Process, err = processSpec(root, cmd, i.like); err != nil {
		return err
	}
	if err := checkDir(root, cmd, spec.Mounts); err != nil {
		return err
	}
	if p != nil && i.c.wantsInit() {
		if err := i.t.addInit(root, spec, cmd); err != nil {
			return err
		}
	}
	own(pipes, spec.Process)
	i.fixed = readOnlyPlaces(spec)
	b, err := json.Marshal(instanceRecord{Container: i.c.id, Root: i.c.root, Program: program})
	if err == nil {
		err = os.WriteFile(filepath.Join(i.bundle.Dir, recordName), b, 0o600)
	}
	return errors.Join(err, i.bundle.WriteConfig(spec))
}

// finish takes away what is left of the instance once its first process has ended. Its namespaces are gone by then,
// and nothing is kept in use: a process that outlives its containers reports the end first.
func (i *instance) finish(p *process, st syscall.WaitStatus) {
	if p != nil {
		i.noteMemory(p, st)
	}
	if !i.stays {
		i.clean()
	}
	if p != nil {
		code := exitCode(st)
		i.mu.Lock()
		if i.instead != 0 && st.Signaled() && st.Signal() == syscall.SIGKILL {
			code = 128 + int(i.instead)
		}
		i.mu.Unlock()
		i.t.procs.finish(p, code)
	}
	close(i.exited)
	if i.stays {
		i.clean()
	}
}

// clean is remove where no caller waits for its error.
func (i *instance) clean() {
	if err := i.remove(); err != nil { // without a guest the next command that finds the folder removes it
		i.t.log.Error("container", "id", i.c.id, "err", err)
	}
}

// still keeps all mounts as they are where the program that runs containers gets a copy of them, until release is
// called: see crun.Runtime.HideUnified.
func (t *Table) still() (release func()) {
	if !t.crun.HideUnified {
		return func() {}
	}
	return t.roots.Still()
}

// remove ends what may be left of the instance and removes its folder.
func (i *instance) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	defer i.t.still()()
	// Where the runtime was killed its helpers may be at work yet: they have the lock, too.
	if err := i.owner.Close(); err != nil {
		return err
	}
	lock, err := lockfile.Wait(ctx, filepath.Join(i.bundle.Dir, ownerName), false)
	if errors.Is(err, os.ErrNotExist) {
		return nil // another process has just swept it away
	}
	if err != nil {
		return err
	}
	return errors.Join(removeBundle(ctx, i.bundle), lock.Close())
}

// removeBundle ends an instance and removes its folder, the lock last.
func removeBundle(ctx context.Context, b crun.Bundle) error {
	if err := b.Delete(ctx); err != nil {
		return fmt.Errorf("end the container in %s: %w", b.Dir, err)
	}
	// Where its creation failed half-way. One that is in use, which is an error above, stays.
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupOf(b.Dir)); !b.Runtime.NoCgroups {
		end := time.Now().Add(groupTime)
		for _, dir := range append(left, "/sys/fs/cgroup"+cgroupOf(b.Dir)) {
			removeGroup(dir, end)
		}
	}
	return os.RemoveAll(b.Dir)
}

// cgroupOf is the cgroup of an instance with a folder.
func cgroupOf(dir string) string { return "/strata-" + filepath.Base(dir) }

// own makes the streams those of the process's user, who may open them again by name.
func own(pipes *stdioPipes, p *specs.Process) {
	if p.User.UID == 0 || p.Terminal {
		return
	}
	for _, f := range pipes.child {
		if f != nil {
			_ = f.Chown(int(p.User.UID), -1) // in a user namespace without such a user the start fails
		}
	}
}
