package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// would prints, in a dry run, what a command would do other than Changes of a VM.
func (e *env) would(cmd *cli.Command, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return e.print(cmd, struct {
		Would string `json:"would"`
	}{text}, func(w io.Writer) { fmt.Fprintln(w, text) })
}

// openDry opens a copy of a VM's ledger with a machine that only prints Changes. A VM that does not exist is treated as
// an empty one.
func (e *env) openDry(ctx context.Context, cmd *cli.Command, name, dir string) (*uvm.UtilityVM, error) {
	dry := strata.DryRun
	if name == hostVM {
		dry = strata.DryRunHost
	}
	return dry(ctx, dir, func(c vmm.Change) error {
		return e.print(cmd, c, func(w io.Writer) { fmt.Fprintln(w, printable(c.String())) })
	}, e.openOptions(cmd))
}
