//go:build !windows

package wclayer

// Supported is nil where this program can work on layers of a Windows host, and tells why not
// otherwise; it matches [errors.ErrUnsupported].
func Supported() error {
	return &Error{Op: "load", Path: "vmcompute.dll", HR: Win32(0x7F)}
}

// Native is the platform of this system. Here every function is missing, which is an error that
// matches [errors.ErrUnsupported].
func Native() API { return missing{} }

func build() uint32 { return 0 }

// DefaultUsesDir is the [Options.UsesDir] that the processes of this host share, or "" where there is none.
func DefaultUsesDir() string { return "" }
