//go:build !linux

package treecopy

import (
	"errors"
	"io"
)

const nonBlock, onlyFolder = 0, 0

// Fill copies a folder of a container's root, on Linux.
func Fill(string, string, string) error { return errors.ErrUnsupported }

// Main copies, on Linux.
func Main([]string, io.Reader, io.Writer, io.Writer) int { return 1 }

// Run is Main for a process that was started for it, on Linux.
func Run([]string) (code int, handled bool) { return 0, false }
