package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/vmm"
)

const (
	templatesDir   = "templates"
	templateSuffix = ".template"
	usersSuffix    = ".users"
	makingLock     = "making.lock" // held while making or removing templates
	usersLock      = "users.lock"  // held while changing the list of machines that use a template
	// maxTemplates is the number of templates kept: the most recently used ones.
	maxTemplates = 4
	// loadTime bounds the time until the guest of a loaded machine answers.
	loadTime = 20 * time.Second
	// writeTime bounds writing a template, during which the saved machine is paused.
	writeTime = time.Minute
)

// startTemplated starts a machine from the template of its kind. If there is none that can be loaded, it boots the
// machine, and saves it as the template unless c.TemplateMissing leaves that to the caller.
func startTemplated(ctx context.Context, c Config, accel string) (*Machine, error) {
	t, err := c.template(accel)
	if err != nil {
		return bootInstead(ctx, c, accel, err)
	}
	whole, err := t.find(ctx)
	if errors.Is(err, os.ErrNotExist) {
		if c.TemplateMissing == nil {
			return t.bootAndSave(ctx, c, accel)
		}
		c.TemplateMissing()
		return boot(ctx, c, accel)
	}
	var m *Machine
	if err == nil {
		m, err = t.load(ctx, c, accel, whole)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, vmm.ErrRunning) {
		return m, err
	}
	if errors.Is(err, errNotLoaded) { // nor could others load it
		err = errors.Join(err, t.remove())
	}
	return bootInstead(ctx, c, accel, err)
}

func bootInstead(ctx context.Context, c Config, accel string, reason error) (*Machine, error) {
	c.Logger.Warn("the machine boots instead of being loaded from a template", "error", reason)
	return boot(ctx, c, accel)
}

// template returns the store of the template of a machine's kind. The error says why there cannot be one.
func (c Config) template(accel string) (t templateStore, err error) {
	switch {
	case c.CacheDir == "" || c.ImageID == "":
		return t, errors.New("there is no folder for templates, or what is booted is not known by its content")
	case c.Transport == TransportVSock:
		return t, fmt.Errorf("a template with the transport vsock: %w", errors.ErrUnsupported)
	case c.MemoryMiB > maxTemplateMiB:
		return t, fmt.Errorf("a template of %d MiB: %w: at most %d", c.MemoryMiB, errors.ErrUnsupported, maxTemplateMiB)
	case c.Kernel == "":
		return t, fmt.Errorf("a template without a kernel: %w", errors.ErrUnsupported)
	}
	program := c.Program
	if program == "" {
		if program, err = exec.LookPath(qemuProgram); err != nil {
			return t, err
		}
	}
	processor := ""
	if accel == AccelKVM {
		b, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return t, err
		}
		processor = processorKind(string(b))
	}
	key, err := c.templateKey(program, accel, processor)
	if err != nil {
		return t, err
	}
	dir := filepath.Join(c.CacheDir, templatesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return t, fmt.Errorf("templates: %w", err)
	}
	return templateStore{dir: dir, key: key, memory: int64(c.MemoryMiB) << 20}, nil
}

// load starts a machine from the template in whole, and closes whole.
func (t templateStore) load(ctx context.Context, c Config, accel string, whole *os.File) (_ *Machine, err error) {
	defer whole.Close() // QEMU has its own descriptor
	if c.memory, err = t.use(ctx, whole, !c.NoShares); err != nil {
		return nil, err
	}
	defer c.memory.state.Close()
	defer c.memory.f.Close()
	limited, cancel := context.WithTimeoutCause(ctx, loadTime,
		fmt.Errorf("the guest did not answer within %s: %w", loadTime, context.DeadlineExceeded))
	defer cancel()
	m, err := boot(limited, c, accel)
	if err != nil || c.memory.share {
		return m, err
	}
	if err := t.noteUser(ctx, m.proc.pid, portFD+c.ExecPorts+1, c.memory.f); err != nil {
		c.Logger.Debug("memory will not be shared with the next machine", "error", err)
	}
	return m, nil
}

// bootAndSave boots a machine and saves it as the template, unless another process is making one; it does not wait for
// that. The machine runs on even if it could not be saved; if the attempt left it unusable, another one is booted.
func (t templateStore) bootAndSave(ctx context.Context, c Config, accel string) (*Machine, error) {
	lock, err := lockMaking(t.dir)
	if errors.Is(err, ErrTemplateBusy) {
		c.Logger.Info("the machine boots, and no template is made of it", "error", err)
		return boot(ctx, c, accel)
	}
	if err != nil {
		return bootInstead(ctx, c, accel, err)
	}
	defer lock.Close()
	if err = t.sweep(ctx); err != nil {
		return bootInstead(ctx, c, accel, err)
	}
	memory, err := memoryOf(t.memory)
	if err != nil {
		return bootInstead(ctx, c, accel, err)
	}
	defer memory.Close()
	saved := c
	saved.memory = &guestMemory{f: memory, share: true}
	m, err := boot(ctx, saved, accel)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, vmm.ErrRunning) {
			return nil, err
		}
		return bootInstead(ctx, c, accel, err)
	}
	err = span.Do(ctx, "strata.template.save", func(ctx context.Context) error { return t.save(ctx, m, memory) })
	if err != nil {
		c.Logger.Warn("no template is made of the machine", "error", err)
	}
	ready, cancel := readyWithin(ctx, stateTime)
	defer cancel()
	if !errors.Is(err, errMayHold) {
		if err = m.goOn(ready); err == nil {
			err = m.Ready(ready)
		}
	}
	if err == nil {
		return m, nil
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminateTime)
	defer cancel()
	err = errors.Join(fmt.Errorf("machine %s: since a template was to be made of it: %w", c.ID, err), m.Terminate(limited),
		m.Close())
	if ctx.Err() != nil {
		return nil, err
	}
	return bootInstead(ctx, c, accel, err)
}

// errMayHold is matched by the error when it is unknown whether the agent is waiting for its renewal, or will be.
var errMayHold = errors.New("it is not known whether the guest waits for its renewal")

// save makes the agent wait for its renewal, and writes a template of the machine's memory and state. It leaves the
// machine paused.
func (t templateStore) save(ctx context.Context, m *Machine, memory *os.File) error {
	settling, cancel := readyWithin(ctx, stateTime)
	defer cancel()
	err := m.withGuest(settling, func(ctx context.Context, g guest) error {
		return g.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestAdd,
			ResourceType: hcsschema.ResourceTemplate})
	})
	if gcs.Outcome(err) == vmm.Unknown {
		err = fmt.Errorf("%w: %w", errMayHold, err)
	}
	if err != nil {
		return err
	}
	if err := m.port.hangUp(); err != nil {
		return err
	}
	at, err := reopen(memory, os.O_RDWR, t.memory)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := saveState(ctx, m.qmp, at); err != nil {
		return err
	}
	writing, cancel := context.WithTimeoutCause(ctx, writeTime,
		fmt.Errorf("the template was not written within %s: %w", writeTime, context.DeadlineExceeded))
	defer cancel()
	return errors.Join(t.write(writing, memory), memory.Truncate(t.memory))
}

// saveState pauses a machine and writes its device state to f, at its current offset.
func saveState(ctx context.Context, q *qmpClient, f *os.File) error {
	return moveState(ctx, q, "migrate", f, func(ctx context.Context) (bool, error) {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		err := q.do(ctx, "query-migrate", nil, &s)
		if err == nil && (s.Status == "failed" || s.Status == "cancelled") {
			err = fmt.Errorf("QEMU does not save its state: %s %s", s.Status, s.Error)
		}
		return s.Status == "completed", err
	})
}

// use returns the memory for a machine that is loaded from the template: the template's own, or, with share, a copy
// that the machine can share with the servers of its folders.
func (t templateStore) use(ctx context.Context, whole *os.File, share bool) (_ *guestMemory, err error) {
	g := &guestMemory{share: share, key: t.key}
	if g.state, err = reopen(whole, os.O_RDONLY, t.memory); err != nil {
		return nil, err
	}
	if !share {
		g.f, err = duplicate(whole)
	} else if g.f, err = memoryOf(t.memory); err == nil {
		if _, err = copyPages(ctx, g.f, 0, whole, 0, t.memory); err != nil {
			g.f.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, g.state.Close())
	}
	return g, nil
}

// memoryOf returns a zero-filled file in memory (memfd) that QEMU may open whatever user it runs as.
func memoryOf(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("strata-guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("file in memory: %w", err), f.Close())
	}
	return f, nil
}

// seals prevent every process from changing a template, even as root.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal a template: %w", err)
	}
	return nil
}

// reopen opens an open file again, with an offset of its own.
func reopen(f *os.File, flags int, at int64) (*os.File, error) {
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
	if err != nil {
		return nil, err
	}
	if _, err := again.Seek(at, 0); err != nil {
		return nil, errors.Join(err, again.Close())
	}
	return again, nil
}

// templateUser is a machine that maps a template: its process, and QEMU's descriptor and the inode of the template.
type templateUser struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	FD    int    `json:"fd"`
	Inode uint64 `json:"inode"`
}

// maxUsers bounds the number of machines that are recorded.
const maxUsers = 8

// running opens the template through the descriptor of a running machine that was loaded from it. The guest may have
// taken over that QEMU process, so the file must have the recorded inode, be sealed, and belong to our own user, which
// a machine that runs as another user cannot achieve.
func (t templateStore) running() *os.File {
	for _, u := range t.users() {
		if f := u.open(t.memory); f != nil {
			return f
		}
	}
	return nil
}

// runs reports whether the machine's process is running.
func (u templateUser) runs() bool {
	start, err := processStart(u.PID)
	return err == nil && start == u.Start
}

func (u templateUser) open(memory int64) *os.File {
	if !u.runs() {
		return nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", u.PID, u.FD), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	path := os.NewFile(uintptr(fd), "template")
	defer path.Close()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != u.Inode ||
		int(st.Uid) != os.Geteuid() || st.Size <= memory {
		return nil
	}
	f, err := reopen(path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	if have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || have&seals != seals {
		f.Close()
		return nil
	}
	return f
}

// noteUser records that f is open as descriptor fd of machine pid, so that running finds it.
func (t templateStore) noteUser(ctx context.Context, pid, fd int, f *os.File) error {
	lock, err := lockfile.Wait(ctx, filepath.Join(t.dir, usersLock), false)
	if err != nil {
		return err
	}
	defer lock.Close()
	start, err := processStart(pid)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	users := []templateUser{{pid, start, fd, st.Ino}}
	for _, u := range t.users() {
		if u.runs() && len(users) < maxUsers {
			users = append(users, u)
		}
	}
	b, err := json.Marshal(users)
	if err != nil {
		return err
	}
	return writeFile(t.usersFile(), b)
}
