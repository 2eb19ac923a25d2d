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

// Build is the build number of this Windows; 0 elsewhere.
func Build() uint32 { return 0 }

// TimeZone is the time zone of this computer, as Windows tells it.
func TimeZone() (hcsschema.TimeZoneInformation, error) {
	err := fmt.Errorf("time zone of this computer: %w on this system", errors.ErrUnsupported)
	return hcsschema.TimeZoneInformation{}, err
}

// FileID asks for the identity of a file or folder.
func FileID(path string) error {
	return fmt.Errorf("identity of %s: %w on this system", path, errors.ErrUnsupported)
}
