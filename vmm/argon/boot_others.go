//go:build !windows

package argon

import (
	"errors"
	"fmt"
)

func bootID() (string, error) {
	return "", fmt.Errorf("layers on a Windows host: %w", errors.ErrUnsupported)
}
