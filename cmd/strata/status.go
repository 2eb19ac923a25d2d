package main

import (
	"fmt"

	"github.com/stratavm/strata/internal/plaintext"
)

// status shows on a terminal what is waited for, until done is called. Elsewhere, and with --json, nothing is shown.
func (e *env) status(format string, args ...any) (done func()) {
	if _, tty := terminal(e.stderr); !tty || e.json {
		return func() {}
	}
	fmt.Fprintf(e.stderr, "\r\x1b[K%s", plaintext.Sprintf(format, args...))
	return func() { fmt.Fprint(e.stderr, "\r\x1b[K") }
}
