//go:build !linux

package main

import (
	"errors"

	"github.com/stratavm/strata"
)

func statDevice(string, *strata.SpecDevice) error { return errors.ErrUnsupported }
