package wclayer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/regfile"
)

// uses is a directory with a record for each mount: which folders a user, a scratch or a volume, uses. Like mounts, it
// outlives the process; it is shared by all processes of a host. Records of an earlier boot are ignored, because its
// mounts do not exist any more.
type uses struct {
	dir  string                 // empty: nothing is recorded
	boot func() (string, error) // identifies the current boot
}

// use is the content of one file.
type use struct {
	User    string   `json:"user"`
	Folders []string `json:"folders"`
	PID     int      `json:"pid"`  // the process that mounted it, for error texts
	Boot    string   `json:"boot"` // the boot of the system in which it was mounted
}

const useSuffix = ".use.json"

func (u uses) file(user string) string {
	return filepath.Join(u.dir, fmt.Sprintf("%x%s", sha256.Sum256([]byte(hostpath.Identity(user))), useSuffix))
}

// locked calls do with the directory locked against other processes.
func (u uses) locked(do func() error) error {
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		return fmt.Errorf("note what is mounted: %w", err)
	}
	// Without the caller's context: System.run returns when that ends, and this must not be left incomplete.
	lock, err := lockfile.Wait(context.Background(), filepath.Join(u.dir, "lock"), false)
	if err != nil {
		return fmt.Errorf("note what is mounted: %w", err)
	}
	return errors.Join(do(), lock.Close())
}

// hold records that user uses folders. It replaces an earlier record of user.
func (u uses) hold(user string, folders ...string) error {
	if u.dir == "" {
		return nil
	}
	return u.locked(func() error {
		boot, err := u.boot()
		if err != nil {
			return fmt.Errorf("note that %s is mounted: %w", user, err)
		}
		return u.write(use{User: user, Folders: folders, PID: os.Getpid(), Boot: boot})
	})
}

// shrink is hold, but only if there is a record of user already.
func (u uses) shrink(user string, folders ...string) error {
	if u.dir == "" {
		return nil
	}
	return u.locked(func() error {
		boot, err := u.boot()
		if err != nil {
			return fmt.Errorf("note that %s is mounted: %w", user, err)
		}
		if _, there, err := u.read(u.file(user), boot); err != nil || !there {
			return err
		}
		return u.write(use{User: user, Folders: folders, PID: os.Getpid(), Boot: boot})
	})
}

func (u uses) write(v use) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(u.file(v.User), b, atomicfile.Options{}); err != nil {
		return fmt.Errorf("note that %s is mounted: %w", v.User, err)
	}
	return nil
}

// drop removes the record of user.
func (u uses) drop(user string) error {
	if u.dir == "" {
		return nil
	}
	return u.locked(func() error {
		if err := os.Remove(u.file(user)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("note that %s is not mounted any more: %w", user, err)
		}
		return nil
	})
}

// unless calls do unless folder is in use, while no process can start using it.
func (u uses) unless(folder string, do func() error) error {
	if u.dir == "" {
		return fmt.Errorf("%w: layer %s is not destroyed without a directory that tells what is mounted (Options.UsesDir)",
			ErrInvalid, folder)
	}
	return u.locked(func() error {
		boot, err := u.boot()
		if err != nil {
			return fmt.Errorf("what is mounted: %w", err)
		}
		entries, err := os.ReadDir(u.dir)
		if err != nil {
			return fmt.Errorf("what is mounted: %w", err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), useSuffix) {
				continue
			}
			v, there, err := u.read(filepath.Join(u.dir, e.Name()), boot)
			if err == nil && there {
				err = v.check(folder)
			}
			if err != nil {
				return err
			}
		}
		return do()
	})
}

// read reads a record and reports whether there is one of this boot. It removes one of another boot. A record without a
// boot counts as one of this boot.
func (u uses) read(file, boot string) (v use, there bool, err error) {
	b, err := regfile.ReadState(file)
	if errors.Is(err, fs.ErrNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("what is mounted: %w", err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, false, fmt.Errorf("what is mounted: %s is damaged; remove it once nothing is mounted: %w", file, err)
	}
	if v.Boot == "" || v.Boot == boot {
		return v, true, nil
	}
	if err := os.Remove(file); err != nil {
		return v, false, fmt.Errorf("forget what an earlier boot had mounted: %w", err)
	}
	return v, false, nil
}

// check returns an error if the record has folder, or a folder above or below it.
func (v use) check(folder string) error {
	want := hostpath.Identity(folder)
	for _, f := range v.Folders {
		if have := hostpath.Identity(f); have == want || strings.HasPrefix(have, want+"/") ||
			strings.HasPrefix(want, have+"/") {
			return fmt.Errorf("%w: %s by %s, mounted by process %d: unmount it first", ErrInUse, folder, v.User, v.PID)
		}
	}
	return nil
}
