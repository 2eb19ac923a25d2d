//go:build unix

package atomicfile

import (
	"errors"
	"os"
)

// SyncDir syncs a directory, which makes renames in it durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
