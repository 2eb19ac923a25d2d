package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/span"
)

const (
	templatesDir   = "templates"
	templateSuffix = ".template"
	makingDir      = "making"      // the state directory of the machine that is saved
	makingLock     = "making.lock" // held by who makes one
	// maxTemplates is how many are kept: those that were used last.
	maxTemplates = 4
	// loadTime bounds how long a machine that is loaded may take until its guest answers.
	loadTime = 20 * time.Second
)

// errTemplateBusy says that another process makes a template. Its end is not waited for.
var errTemplateBusy = errors.New("another process makes a template at this time")

// startTemplated starts a machine from the template of its kind, which it makes if there is none.
func startTemplated(ctx context.Context, c Config, accel string) (*Machine, error) {
	switch {
	case c.CacheDir == "" || c.ImageID == "":
		return nil, errors.New("there is no folder for templates, or what is booted is not known by its content")
	case c.Transport == TransportVSock:
		return nil, fmt.Errorf("a template with the transport vsock: %w", errors.ErrUnsupported)
	case c.MemoryMiB > maxTemplateMiB:
		return nil, fmt.Errorf("a template of %d MiB: %w: at most %d", c.MemoryMiB, errors.ErrUnsupported, maxTemplateMiB)
	case c.Kernel == "":
		return nil, fmt.Errorf("a template without a kernel: %w", errors.ErrUnsupported)
	}
	program := c.Program
	if program == "" {
		var err error
		if program, err = exec.LookPath(qemuProgram); err != nil {
			return nil, err
		}
	}
	processor := ""
	if accel == AccelKVM {
		b, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return nil, err
		}
		processor = processorKind(string(b))
	}
	key, err := c.templateKey(program, accel, processor)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.CacheDir, templatesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	t := templateStore{dir: dir, key: key, memory: int64(c.MemoryMiB) << 20}
	whole, err := t.find()
	if errors.Is(err, os.ErrNotExist) {
		err = span.Do(ctx, "strata.template.make", func(ctx context.Context) (err error) {
			whole, err = t.make(ctx, c, accel)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	defer whole.Close() // QEMU has its own
	if c.memory, err = t.use(whole, !c.NoShares); err != nil {
		return nil, err
	}
	defer c.memory.state.Close()
	defer c.memory.f.Close()
	limited, cancel := context.WithTimeoutCause(ctx, loadTime,
		fmt.Errorf("the guest did not answer within %s: %w", loadTime, context.DeadlineExceeded))
	defer cancel()
	m, err := boot(limited, c, accel)
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, errNotLoaded) { // it is of no use to others either
			err = errors.Join(err, t.remove())
		}
		return nil, err
	}
	if !c.memory.share {
		if err := t.noteUser(m.proc.pid, portFD+c.ExecPorts+1, c.memory.f); err != nil {
			c.Logger.Debug("memory will not be shared with the next machine", "error", err)
		}
	}
	return m, nil
}

// make boots a machine of the kind, saves it and ends it.
func (t templateStore) make(ctx context.Context, c Config, accel string) (_ *os.File, err error) {
	runtime.LockOSThread() // with which the machine would end, see lifeline
	defer runtime.UnlockOSThread()
	lock, err := lockfile.Try(filepath.Join(t.dir, makingLock), false, os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	if lock == nil {
		return nil, errTemplateBusy
	}
	defer lock.Close()
	c.Dir, c.ID, c.Template, c.Namespace = filepath.Join(t.dir, makingDir), "template", false, ""
	if err := t.sweep(ctx, c.Dir); err != nil {
		return nil, err
	}
	whole, err := memoryOf(t.memory)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make a template: %w", err), whole.Close())
		}
	}()
	c.memory = &guestMemory{f: whole, share: true}
	m, err := boot(ctx, c, accel)
	if err != nil {
		return nil, err
	}
	err = t.save(ctx, m, whole)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminateTime)
	defer cancel()
	if err = errors.Join(err, m.Terminate(limited), m.Close()); err != nil {
		return nil, err
	}
	if err := seal(whole); err != nil {
		return nil, err
	}
	if err := t.write(whole); err != nil {
		// It serves this machine, and those that find it there.
		c.Logger.Warn("the template is not kept", "error", err)
	}
	return whole, nil
}

// save has the guest wait for its renewal, and puts the state of the machine behind its memory.
func (t templateStore) save(ctx context.Context, m *Machine, whole *os.File) error {
	err := m.withGuest(ctx, func(ctx context.Context, g guest) error {
		return g.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestAdd,
			ResourceType: hcsschema.ResourceTemplate})
	})
	if err != nil {
		return err
	}
	if err := m.port.close(); err != nil {
		return err
	}
	at, err := reopen(whole, os.O_RDWR, t.memory)
	if err != nil {
		return err
	}
	defer at.Close()
	return saveState(ctx, m.qmp, at)
}

// saveState writes the state of a machine, which stops, to where f is.
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

// use returns the memory of a machine that is loaded from the template: the template's, or a copy that is shared with
// those who serve folders.
func (t templateStore) use(whole *os.File, share bool) (_ *guestMemory, err error) {
	g := &guestMemory{share: share, key: t.key}
	if g.state, err = reopen(whole, os.O_RDONLY, t.memory); err != nil {
		return nil, err
	}
	if !share {
		g.f, err = duplicate(whole)
	} else if g.f, err = memoryOf(t.memory); err == nil {
		if _, err = copyPages(g.f, 0, whole, 0, t.memory); err != nil {
			g.f.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, g.state.Close())
	}
	return g, nil
}

// memoryOf returns a file in memory, of zeroes, that QEMU may open under whatever user it runs.
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

// lifeline is the signal that ends a machine with who started it: one that is saved, and no other, is of use to nobody
// else.
func (g *guestMemory) lifeline() syscall.Signal {
	if g != nil && g.key == "" {
		return syscall.SIGKILL
	}
	return 0
}

// seals keep everybody from changing a template, whatever his rights.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal a template: %w", err)
	}
	return nil
}

// reopen opens a file that is open anew, with a place of its own in it.
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

// templateUser is a machine that maps a template.
type templateUser struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	FD    int    `json:"fd"`
	Inode uint64 `json:"inode"`
}

// maxUsers bounds the machines that are remembered.
const maxUsers = 8

// running finds the template in a machine that has been loaded from it. That may have been taken over by its guest: the
// file must be the one that was noted, sealed, and made by who we are, which a machine of another user cannot do.
func (t templateStore) running() *os.File {
	for _, u := range t.users() {
		if f := u.open(t.memory); f != nil {
			return f
		}
	}
	return nil
}

func (u templateUser) open(memory int64) *os.File {
	if start, err := processStart(u.PID); err != nil || start != u.Start {
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

// noteUser notes where the template can be found: f, as the descriptor fd of a machine.
func (t templateStore) noteUser(pid, fd int, f *os.File) error {
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
		if now, err := processStart(u.PID); err == nil && now == u.Start && len(users) < maxUsers {
			users = append(users, u)
		}
	}
	b, err := json.Marshal(users)
	if err != nil {
		return err
	}
	return writeFile(t.usersFile(), b)
}
