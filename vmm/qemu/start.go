package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/vmm"
)

// Start starts a machine and returns when its guest answers. On error nothing is left behind. Each boot takes at most
// Config.BootTime. The machine outlives this process.
func Start(ctx context.Context, c Config) (*Machine, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if c.Accel != AccelAuto {
		return start(ctx, c, c.Accel)
	}
	if err := kvmWorth(c); err != nil {
		c.Logger.Info("the machine is emulated in software", "reason", err)
		return start(ctx, c, AccelTCG)
	}
	trial := c
	trial.BootTime = min(c.BootTime, c.KVMTrial)
	m, err := start(ctx, trial, AccelKVM)
	if err == nil || ctx.Err() != nil || errors.Is(err, errKilled) {
		return m, err
	}
	c.Logger.Warn("KVM does not work here, the machine is emulated in software", "error", err)
	kvmErr := err
	if m, err = start(ctx, c, AccelTCG); err != nil {
		return nil, errors.Join(err, fmt.Errorf("before that, with KVM: %w", kvmErr))
	}
	// Only now is it certain that KVM was the cause.
	kvmRemember(c, kvmErr)
	return m, nil
}

// readyWithin returns a context for waiting until a guest is ready.
func readyWithin(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("the guest was not ready within %s: %w", limit, context.DeadlineExceeded))
}

// start loads a machine from its template if requested and possible, and otherwise boots one.
func start(ctx context.Context, c Config, accel string) (*Machine, error) {
	if c.Template {
		return startTemplated(ctx, c, accel)
	}
	return boot(ctx, c, accel)
}

// boot starts QEMU. The guest boots, or is loaded if c.memory has the state of a template.
func boot(ctx context.Context, c Config, accel string) (m *Machine, err error) {
	err = span.Do(ctx, "strata.boot", func(ctx context.Context) error {
		m, err = bootOnce(ctx, c, accel)
		return err
	}, attribute.String("strata.accel", accel), attribute.Bool("strata.template", c.memory != nil && c.memory.state != nil))
	return m, err
}

func bootOnce(ctx context.Context, c Config, accel string) (_ *Machine, err error) {
	desc := description{ID: c.ID, Program: c.Program, Kernel: c.Kernel, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs,
		NoShares: c.NoShares, Accel: accel, ExecPorts: c.ExecPorts, Transport: TransportSerial, Started: time.Now().UTC()}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: state directory: %w", err)
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: state directory: %w", err)
	}
	lock, err := tryLockPort(c.Dir, controlPort)
	if errors.Is(err, ErrPortsTaken) {
		return nil, fmt.Errorf("qemu: %s: %w", c.Dir, vmm.ErrRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	locked := lock
	defer func() {
		if locked != nil {
			locked.unlock()
		}
	}()
	if old, err := findProcess(c.Dir); err == nil {
		old.close()
		return nil, fmt.Errorf("qemu: %s: %w", c.Dir, vmm.ErrRunning)
	} else if !errors.Is(err, errNoProcess) {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if _, err := removeFiles(c.Dir, portLockName(controlPort)); err != nil {
		return nil, fmt.Errorf("qemu: what an earlier machine left: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(ctx, c.Dir))
		}
	}()
	dev, err := c.vsock()
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if dev != nil {
		defer dev.f.Close() // QEMU gets a copy
		desc.CID, desc.Token = dev.cid, dev.token
	}
	if c.memory != nil {
		desc.Template, desc.Saved = c.memory.key, c.memory.key == ""
		if err := writeFile(filepath.Join(c.Dir, savingFile), nil); err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
	}
	if desc.UID, err = machineUser(c.Dir); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if err := desc.write(c.Dir); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	var proc *process
	if err := span.Do(ctx, "strata.boot.launch", func(context.Context) (err error) {
		proc, err = launch(c, accel, desc.UID, dev)
		return err
	}); err != nil {
		return nil, err
	}
	locked = nil // the machine owns it now
	var m *Machine
	if err := span.Do(ctx, "strata.boot.qemu", func(ctx context.Context) (err error) {
		m, err = connect(ctx, c.Dir, desc, proc, lock, c)
		return err
	}); err != nil {
		return nil, err
	}
	booting, cancel := readyWithin(ctx, c.BootTime)
	defer cancel()
	if err := span.Do(booting, "strata.boot.guest", m.Ready); err != nil {
		err = fmt.Errorf("machine %s: the guest did not get ready: %w%s", c.ID, err, m.lastWords(ctx))
		if c.memory != nil && c.memory.state != nil {
			err = fmt.Errorf("%w: %w", errNotLoaded, err)
		}
		return nil, errors.Join(err, m.Close())
	}
	if c.memory != nil && c.memory.state != nil {
		if err := m.saved(); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	if dev != nil {
		if err := m.overVSock(ctx, c, desc); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// lastWordsTime bounds reading the guest's console for an error.
const lastWordsTime = time.Second

func (m *Machine) lastWords(ctx context.Context) string {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordsTime)
	defer cancel()
	text, err := m.Console(limited)
	if err != nil {
		return ""
	}
	return quoteTail("the guest's console says", text)
}

// discard kills what a failed start has started and removes its files.
func discard(ctx context.Context, dir string) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminateTime)
	defer cancel()
	if err := Kill(limited, dir); err != nil {
		return err
	}
	if err := removeState(dir); err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	return nil
}

// Open takes control of a running machine, which this or another process has started. If another process controls it,
// Open waits. It does not wait for the guest agent; the methods of Machine do. If there never was a machine in dir, the
// error matches vmm.ErrNoVM; if it has ended, vmm.ErrGone.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Machine, error) {
	return open(ctx, dir, Config{Logger: log, connect: connectGCS})
}

func open(ctx context.Context, dir string, c Config) (*Machine, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	desc, err := readDescription(dir)
	if err != nil {
		return nil, err
	}
	lock, err := lockControl(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("qemu: open %s: %w", dir, err)
	}
	proc, err := findProcess(dir)
	if err != nil {
		lock.unlock()
		if errors.Is(err, errNoProcess) {
			err = fmt.Errorf("%w: %w%s", vmm.ErrGone, err, logTail(dir))
		}
		return nil, fmt.Errorf("qemu: open %s: %w", dir, err)
	}
	return connect(ctx, dir, desc, proc, lock, c)
}

// Inspect describes the machine in a state directory. If there is none, the error matches vmm.ErrNoVM. A machine that
// has ended but whose files are still there is reported as not running.
func Inspect(dir string) (vmm.Info, error) {
	desc, err := readDescription(dir)
	if err != nil {
		return vmm.Info{}, err
	}
	info := vmm.Info{Dir: dir, Driver: Driver{}.Name(), OS: vmm.Linux, Accel: desc.Accel, Memory: desc.MemoryMiB,
		CPUs: desc.CPUs, NoShares: desc.NoShares, Kernel: desc.Kernel, Transport: desc.Transport, Template: desc.Template,
		Started: desc.Started}
	proc, err := findProcess(dir)
	if errors.Is(err, errNoProcess) {
		return info, nil
	}
	if err != nil {
		return info, fmt.Errorf("qemu: %w", err)
	}
	defer proc.close()
	info.Running, info.PID = true, proc.pid
	info.Paused = pausedBecause(dir)
	return info, nil
}

// Kill kills the machine in a state directory, whichever process controls it. If none is running, it succeeds. It
// leaves the files, which may already belong to the next machine: Start removes them, and so may a caller who makes
// sure that no machine is started meanwhile.
func Kill(ctx context.Context, dir string) error {
	proc, err := findProcess(dir)
	if err == nil {
		defer proc.close()
		if err := proc.kill(); err != nil {
			return fmt.Errorf("qemu: end process %d: %w", proc.pid, err)
		}
		if err := proc.waitExit(ctx); err != nil {
			return fmt.Errorf("qemu: process %d does not end: %w", proc.pid, err)
		}
	} else if !errors.Is(err, errNoProcess) {
		return fmt.Errorf("qemu: %w", err)
	}
	if err := errors.Join(endServers(ctx, dir), disconnectAll(dir)); err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	return nil
}

// kvmFile returns the path of the file that records that KVM does not work.
func kvmFile(c Config) string { return filepath.Join(c.CacheDir, "kvm-does-not-work") }

// kvmWorth returns why KVM should not be tried, or nil.
func kvmWorth(c Config) error {
	if err := c.kvmUsable(); err != nil {
		return err
	}
	if c.CacheDir == "" {
		return nil
	}
	boot, bootErr := bootid.Read()
	if b, err := regfile.ReadState(kvmFile(c)); err == nil && bootErr == nil && len(b) > 0 && string(b) == boot {
		return fmt.Errorf("KVM did not work here before; to try it again remove %s", kvmFile(c))
	}
	return nil
}

func kvmRemember(c Config, reason error) {
	if c.CacheDir == "" {
		return
	}
	boot, err := bootid.Read()
	if err == nil {
		err = os.MkdirAll(c.CacheDir, 0o700)
	}
	if err == nil {
		err = writeFile(kvmFile(c), []byte(boot))
	}
	if err != nil { // it is tried again next time
		c.Logger.Warn("it cannot be remembered that KVM does not work", "reason", reason, "error", err)
	}
}
