//go:build !windows

package wclayer

// Supported returns an error that matches [errors.ErrUnsupported] unless this system is a Windows host with layers.
func Supported() error {
	return &Error{Op: "load", Path: "vmcompute.dll", HR: Win32(0x7F)}
}

// Native returns the platform of this system. Here every function returns an error that matches
// [errors.ErrUnsupported].
func Native() API { return missing{} }

func build() uint32 { return 0 }

// DefaultUsesDir is the [Options.UsesDir] that the processes of this host share, or "" where there is none.
func DefaultUsesDir() string { return "" }
