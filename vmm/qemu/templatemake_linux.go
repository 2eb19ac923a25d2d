package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/span"
)

// makingDir is the state directory of the machine that MakeTemplate saves. Its owner is the holder of makingLock.
const makingDir = "making"

// leastRoom is the free disk space in bytes without which no machine is booted for a template: the memory of a guest
// that has just booted takes about 110 MiB.
const leastRoom = 128 << 20

// MakeTemplate creates the template of c's kind of machine: it boots a machine at the lowest priority, saves it and ends
// it. If the template exists, made is false; if another process is making or removing templates, the error matches
// ErrTemplateBusy. If this process is killed, the next MakeTemplate or RemoveTemplates ends the machine that it leaves.
// c.Dir, c.Namespace and c.NoShares are ignored.
func MakeTemplate(ctx context.Context, c Config) (made bool, err error) {
	if c.CacheDir == "" {
		return false, errors.New("qemu: a template without a cache directory")
	}
	c.Dir, c.ID = filepath.Join(c.CacheDir, templatesDir, makingDir), ""
	c.Namespace = ""
	if c, err = c.withDefaults(); err != nil {
		return false, err
	}
	accel := c.Accel
	if accel == AccelAuto {
		if accel = AccelKVM; kvmWorth(c) != nil {
			accel = AccelTCG
		}
	}
	t, err := c.template(accel)
	if err != nil {
		return false, fmt.Errorf("qemu: %w", err)
	}
	lock, err := lockMaking(t.dir)
	if err != nil {
		return false, fmt.Errorf("qemu: %w", err)
	}
	defer lock.Close()
	if whole, err := t.find(ctx); err == nil {
		return false, whole.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("qemu: %w", err)
	}
	err = t.sweep(ctx)
	if err == nil {
		err = roomFor(t.dir)
	}
	if err == nil {
		err = t.makeOf(ctx, c, accel)
	}
	if err != nil {
		return false, fmt.Errorf("qemu: make a template: %w", err)
	}
	return true, nil
}

func roomFor(dir string) error {
	free, err := freeBytes(dir)
	if err == nil && free < leastRoom {
		err = fmt.Errorf("%w: %s has %d MiB free, of %d that it may take; strata store gc makes room", unix.ENOSPC, dir,
			free>>20, leastRoom>>20)
	}
	return err
}

// makeOf boots a machine, saves it and ends it. The caller holds makingLock.
func (t templateStore) makeOf(ctx context.Context, c Config, accel string) error {
	memory, err := memoryOf(t.memory)
	if err != nil {
		return err
	}
	defer memory.Close()
	c.memory, c.idle = &guestMemory{f: memory, share: true}, true
	m, err := boot(ctx, c, accel)
	if err != nil {
		return err
	}
	err = span.Do(ctx, "strata.template.save", func(ctx context.Context) error { return t.save(ctx, m, memory) })
	return errors.Join(err, m.Close(), endMaking(ctx, t.dir))
}

// endMaking ends the machine that MakeTemplate boots, also that of one that was killed, and removes what is there of
// it. The lock of making is held.
func endMaking(ctx context.Context, dir string) error {
	dir = filepath.Join(dir, makingDir)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return discard(ctx, dir)
}
