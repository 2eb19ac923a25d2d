//go:build !windows

package hcs

import (
	"errors"
	"fmt"
	"net"
)

// Native is the Host Compute Service of this computer; other systems than Windows have none.
func Native() (API, error) {
	return nil, fmt.Errorf("the Host Compute Service: %w on this system", errors.ErrUnsupported)
}

// Listen listens on a Hyper-V socket service for connections from one VM.
func Listen(_, serviceID string) (net.Listener, error) {
	return nil, fmt.Errorf("listen on Hyper-V socket %s: %w on this system", serviceID, errors.ErrUnsupported)
}

// Build is the build number of this Windows; 0 elsewhere.
func Build() uint32 { return 0 }

// FileID asks for the identity of a file or folder.
func FileID(path string) error {
	return fmt.Errorf("identity of %s: %w on this system", path, errors.ErrUnsupported)
}
