package gcs

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of Linux on arguments and environment variables, in bytes: of one, with its terminating zero; and of all
// together, with a pointer for each.
const (
	MaxArgument  = 128 << 10
	MaxArguments = 2 << 20
)

// ErrArguments is matched by errors of CheckArguments.
var ErrArguments = errors.New("impossible arguments or environment")

// CheckArguments returns an error for arguments and environment that are too large for Linux, contain a zero byte, or
// are not UTF-8, which the protocol's JSON cannot encode. The error matches ErrArguments.
func CheckArguments(args, env []string) error {
	const pointer = 8
	total := 0
	for _, list := range []struct {
		what   string
		values []string
	}{{"argument", args}, {"environment variable", env}} {
		for i, v := range list.values {
			name := fmt.Sprintf("%s %d", list.what, i)
			if list.what != "argument" {
				key, _, _ := strings.Cut(v, "=")
				name = fmt.Sprintf("%s %.40q", list.what, key)
			}
			switch {
			case len(v) >= MaxArgument:
				return fmt.Errorf("%w: %s has %d bytes, the most is %d", ErrArguments, name, len(v), MaxArgument-1)
			case strings.IndexByte(v, 0) >= 0:
				return fmt.Errorf("%w: %s has a byte of value zero in it", ErrArguments, name)
			case !utf8.ValidString(v):
				return fmt.Errorf("%w: %s is not UTF-8", ErrArguments, name)
			}
			total += len(v) + 1 + pointer
		}
	}
	if total > MaxArguments {
		return fmt.Errorf("%w: all together they take %d bytes, the most is %d", ErrArguments, total, MaxArguments)
	}
	return nil
}
