//go:build !windows

package hcsapi

import (
	"errors"
	"fmt"
)

// Native is the Host Compute Service of this computer; other systems than Windows have none.
func Native() (API, error) {
	return nil, fmt.Errorf("the Host Compute Service: %w on this system", errors.ErrUnsupported)
}
