// Package bootid identifies the current boot of this system: recorded mounts of an earlier boot do not exist any more.
package bootid

import "fmt"

// Read returns an identifier that stays the same until the system is rebooted. It may be called concurrently. On
// systems without one the error matches [errors.ErrUnsupported]. On Windows it needs administrator rights.
func Read() (string, error) {
	id, err := read()
	if err != nil {
		return "", fmt.Errorf("tell this boot from others: %w", err)
	}
	return id, nil
}
