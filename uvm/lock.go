package uvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	lockName = "lock"
	// Neither flock nor LockFileEx can be given up once it waits, so waiting is asking again.
	lockPause    = 2 * time.Millisecond
	lockPauseMax = 100 * time.Millisecond
)

// lockDir takes the lock of a state directory and waits for it until ctx ends. The file names the
// process that holds it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	for pause := lockPause; ; pause = min(2*pause, lockPauseMax) {
		ok, err := tryLock(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		if ok {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			holder, _ := os.ReadFile(f.Name())
			err := fmt.Errorf("lock %s: %w (process %s): %w", dir, ErrLocked,
				strings.TrimSpace(string(holder)), context.Cause(ctx))
			return nil, errors.Join(err, f.Close())
		}
	}
	text := fmt.Sprintf("%d\n", os.Getpid())
	if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
