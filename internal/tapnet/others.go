//go:build !linux

package tapnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/stratavm/strata/vmm"
)

func unsupported(path string) error {
	return inNamespace(path, fmt.Errorf("not on a %s host: %w", runtime.GOOS, errors.ErrUnsupported))
}

// Check returns an error.
func Check(path string) error { return unsupported(path) }

// Open returns an error.
func Open(path string) (*os.File, error) { return nil, unsupported(path) }

// Address finds none.
func Address(string) (a netip.Addr, ok bool) { return a, false }

// Links returns an error.
func Links(path string) ([]vmm.Link, error) { return nil, unsupported(path) }

// Connect returns an error.
func Connect(path string, _ vmm.Link) (*os.File, error) { return nil, unsupported(path) }

// Disconnect finds nothing to do.
func Disconnect(string, vmm.Link) error { return nil }
