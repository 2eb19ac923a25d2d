package gcs

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// What Linux lets a program be started with, in bytes: one argument or variable with the zero that ends
// it; and all of them together, with a pointer for each.
const (
	MaxArgument  = 128 << 10
	MaxArguments = 2 << 20
)

// ErrArguments: a program cannot be started with such arguments or such an environment.
var ErrArguments = errors.New("impossible arguments or environment")

// CheckArguments reports what cannot be handed over to a program, before anything is begun: what is too
// large for Linux, a byte of value zero, and what is not UTF-8, which the documents of the protocol cannot
// hold. The error matches ErrArguments.
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
