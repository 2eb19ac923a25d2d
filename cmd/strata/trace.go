package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/internal/tracefile"
)

func traceFlag() cli.Flag {
	return &cli.StringFlag{Name: "trace", TakesFile: true,
		Usage: "write to `FILE` when each step of the command began and ended, for ui.perfetto.dev"}
}

// traced is a command's action in a span of its own, with a file of the trace when it ends, however it ends. The
// supervisor of a detached container has the arguments of the command that made it, whose trace it would overwrite.
func traced(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) (err error) {
		path := cmd.String("trace")
		if path == "" || cmd.Bool("supervise") {
			return action(ctx, cmd)
		}
		file, err := regfile.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("--trace: %w", err)
		}
		recorder := tracefile.New()
		ctx, s := recorder.Tracer(span.Scope).Start(ctx, "strata "+commandPath(cmd))
		defer func() {
			span.End(s, err)
			if terr := errors.Join(recorder.Write(file), file.Close()); terr != nil {
				terr = fmt.Errorf("--trace: %w", terr)
				if ee, ok := errors.AsType[*exitError](err); ok { // with the program's exit code
					terr = &exitError{ee.code, errors.Join(ee.err, terr)}
				} else {
					terr = errors.Join(err, terr)
				}
				err = terr
			}
		}()
		return action(ctx, cmd)
	}
}
