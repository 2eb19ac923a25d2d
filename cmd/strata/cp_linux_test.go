package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
)

type calls func()

func (f calls) Write(b []byte) (int, error) { f(); return len(b), nil }

// TestInterruptedCopy: a copy of what has no end, from or to a root of this system, ends with its context.
func TestInterruptedCopy(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.WriteFile(root+"/big", nil, 0o600), os.Truncate(root+"/big", 1<<42)); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	for name, do := range map[string]func(context.Context, func()) error{
		"out": func(ctx context.Context, stop func()) error {
			return hostPlace(root)(ctx, nil, calls(stop), "pack", "/big", "big")
		},
		"in": func(ctx context.Context, stop func()) error {
			in, w := io.Pipe() // of which nothing comes
			defer w.Close()
			stop()
			return hostPlace(root)(ctx, in, io.Discard, "unpack", "/")
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			if err := do(ctx, func() { cancel(why) }); !errors.Is(err, why) {
				t.Errorf("error %v", err)
			}
		})
	}
}
