package layerdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// output is a file that appears complete or not at all. It is written under a temporary name beside
// the folder it is meant for, which is made only when the file is whole.
type output struct {
	file *os.File
	dir  string
	name string
	made []string // folders that newOutput made, outermost first
	done bool
}

func newOutput(dir, name string) (*output, error) {
	o := &output{dir: dir, name: name}
	parent := filepath.Dir(dir)
	if err := o.mkdirAll(parent); err != nil {
		return nil, errors.Join(err, o.removeMade())
	}
	f, err := os.CreateTemp(parent, ".strata-*.tmp")
	if err != nil {
		return nil, errors.Join(explain(err), o.removeMade())
	}
	o.file = f
	return o, nil
}

// writeFile writes a small file in one step, in place of what has its name.
func writeFile(dir, name string, b []byte) (err error) {
	out, err := newOutput(dir, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	if _, err := out.file.Write(b); err != nil {
		return explain(err)
	}
	return out.commit(true)
}

// mkdirAll is os.MkdirAll that remembers what it made.
func (o *output) mkdirAll(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := o.mkdirAll(parent); err != nil {
			return err
		}
	}
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		o.made = append(o.made, dir)
	case !errors.Is(err, fs.ErrExist):
		return explain(err)
	}
	return nil
}

// commit syncs the file and gives it its name. With replace false it fails with fs.ErrExist when the
// name is taken.
func (o *output) commit(replace bool) error {
	if err := o.file.Sync(); err != nil {
		return explain(err)
	}
	// CreateTemp makes files private; layers and scratches have the usual mode.
	if err := o.file.Chmod(0o644); err != nil {
		return err
	}
	tmp := o.file.Name()
	if err := o.file.Close(); err != nil {
		return explain(err)
	}
	if err := o.mkdirAll(o.dir); err != nil {
		return err
	}
	path := filepath.Join(o.dir, o.name)
	if replace {
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
		o.done = true
	} else {
		// A link refuses to replace, which rename cannot be told to do everywhere.
		if err := os.Link(tmp, path); err != nil {
			return err
		}
		o.done = true
		if err := os.Remove(tmp); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(o.dir), syncDir(filepath.Dir(o.dir)))
}

// abandon removes what was made, unless it was committed. It may be called more than once.
func (o *output) abandon() error {
	if o.done || o.file == nil {
		return nil
	}
	o.done = true
	closeErr := o.file.Close()
	if errors.Is(closeErr, os.ErrClosed) {
		closeErr = nil
	}
	return errors.Join(closeErr, os.Remove(o.file.Name()), o.removeMade())
}

// removeMade removes the folders that were made, as far as they are empty: somebody else may have
// put something there meanwhile.
func (o *output) removeMade() error {
	for i := len(o.made) - 1; i >= 0; i-- {
		if err := os.Remove(o.made[i]); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			break
		}
	}
	o.made = nil
	return nil
}

// explain adds the remedy to errors that the user can mend.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: free some space, or choose a folder on another file system", err)
	case errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the disk quota is used up", err)
	}
	return err
}
