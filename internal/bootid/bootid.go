// Package bootid tells one boot of this system from others: what is mounted does not outlive a boot, but a note of it
// in a file does.
package bootid

import "fmt"

// Read returns an identifier that is the same until the system is booted again. It may be called concurrently. Systems
// that have none return an error that matches [errors.ErrUnsupported]; Windows lets administrators alone ask.
func Read() (string, error) {
	id, err := read()
	if err != nil {
		return "", fmt.Errorf("tell this boot from others: %w", err)
	}
	return id, nil
}
