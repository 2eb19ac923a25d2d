//go:build !linux && !windows

package bootid

import "errors"

func read() (string, error) { return "", errors.ErrUnsupported }
