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

// runtimeTime bounds a call of the runtime, crun or runc.
const runtimeTime = time.Minute

// instance is one run of a container, from the start of its first process to the end of that process. It has a
// directory:
//
//	owner          locked by the process that supervises the instance, and while a start is under way
//	instance.json  an instanceRecord
//	config.json    the OCI spec
//	state, log     of the runtime
type instance struct {
	t      *Table
	c      *container
	bundle crun.Bundle
	owner  *os.File
	like   *specs.Process // the process of the spec
	fixed  []string       // read-only paths of the spec, see readOnlyPlaces
	exited chan struct{}  // closed when all its processes have ended
	joined []*os.File     // namespaces of other containers, while the first process is started
	stays  bool           // this process outlives it, see Table.UseRuntime

	mu      sync.Mutex
	pid     int            // of the first process; 0: not started yet
	files   int            // counts exec, for the names of its files
	closing bool           // the first process has ended, or was not started
	instead syscall.Signal // the signal for which the first process got SIGKILL, see signalFirst
	pauses  bool           // the first process only waits, see beginPause
}

// instanceRecord describes an instance to other processes.
type instanceRecord struct {
	Container string `json:"container"`
	Root      string `json:"root"`
	Program   string `json:"program"`
}

const (
	ownerName  = "owner"
	recordName = "instance.json"
)

// newInstance returns a new instance with a locked directory. Nothing is started.
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
			continue // another process's sweep has removed the empty directory
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

// exec starts the first process, or a further one in the same namespaces. p is not nil.
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

// begin starts the first process; on error it removes the instance. p is nil for a pause process.
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
	// The new mount namespace starts with a copy of all mounts, which would keep an unmounted device in use.
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
	root, err := openRoot(fmt.Sprintf("/proc/%d/root", i.pid)) // the root with the container's mounts
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

// errNotExecuted is returned if a process ended before it executed its program.
var errNotExecuted = errors.New("the program cannot be executed")

// start starts a process by run and waits until it has executed its program. exited is called once the process has
// ended, in a goroutine of its own.
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

// describe writes config.json and the record of the instance.
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

// finish reports the exit of the first process and removes what is left of the instance. Its namespaces have ended and
// keep no mount busy, so that a process that outlives its containers reports the exit first.
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

// clean calls remove and logs its error.
func (i *instance) clean() {
	if err := i.remove(); err != nil { // without a guest, the next command's sweep removes the directory
		i.t.log.Error("container", "id", i.c.id, "err", err)
	}
}

// still blocks unmounting until release is called, if the runtime is started in a mount namespace with a copy of all
// mounts: see crun.Runtime.HideUnified.
func (t *Table) still() (release func()) {
	if !t.crun.HideUnified {
		return func() {}
	}
	return t.roots.Still()
}

// remove ends what may be left of the instance and removes its directory.
func (i *instance) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	defer i.t.still()()
	// If the runtime was killed, its helpers may still run; they hold the lock as well.
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

// removeBundle ends an instance and removes its control groups and directory. The caller must hold its lock.
func removeBundle(ctx context.Context, b crun.Bundle) error {
	if err := b.Delete(ctx); err != nil {
		return fmt.Errorf("end the container in %s: %w", b.Dir, err)
	}
	// Groups may be left if the instance's creation failed half-way.
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupOf(b.Dir)); !b.Runtime.NoCgroups {
		end := time.Now().Add(groupTime)
		for _, dir := range append(left, "/sys/fs/cgroup"+cgroupOf(b.Dir)) {
			removeGroup(dir, end)
		}
	}
	return os.RemoveAll(b.Dir)
}

// cgroupOf returns the control group of the instance with a directory.
func cgroupOf(dir string) string { return "/strata-" + filepath.Base(dir) }

// own makes the process's user the owner of its streams, so that it can reopen them, such as by /dev/stdout.
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
