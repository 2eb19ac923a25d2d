//go:build !windows

package hcs

import (
	"errors"
	"fmt"
	"net"

	"github.com/stratavm/strata/hcsschema"
)

// Listen listens on a Hyper-V socket service for connections from one VM.
func Listen(_, serviceID string) (net.Listener, error) {
	return nil, fmt.Errorf("listen on Hyper-V socket %s: %w on this system", serviceID, errors.ErrUnsupported)
}

// Build returns the build number of this Windows; 0 on other systems.
func Build() uint32 { return 0 }

// TimeZone returns the time zone of this computer.
func TimeZone() (hcsschema.TimeZoneInformation, error) {
	err := fmt.Errorf("time zone of this computer: %w on this system", errors.ErrUnsupported)
	return hcsschema.TimeZoneInformation{}, err
}

// FileID returns an error if a file or folder has no file identity.
func FileID(path string) error {
	return fmt.Errorf("identity of %s: %w on this system", path, errors.ErrUnsupported)
}
