package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/internal/tracefile"
)

func traceFlag() cli.Flag {
	return &cli.StringFlag{Name: "trace", TakesFile: true,
		Usage: "write to `FILE` when each step of the command began and ended, for ui.perfetto.dev"}
}

// traced wraps a command's action in a span, and writes the file of --trace when it ends, also on error. A file that
// cannot be written is an error before the action starts; an existing file is replaced only at the end. The supervisor
// of a detached container writes no trace: it has the same arguments and would overwrite that of the command.
func traced(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) (err error) {
		path := cmd.String("trace")
		if path == "" || cmd.Bool("supervise") {
			return action(ctx, cmd)
		}
		if err := traceable(path); err != nil {
			return fmt.Errorf("--trace: %w", err)
		}
		recorder := tracefile.New()
		ctx, s := recorder.Tracer(span.Scope).Start(ctx, "strata "+commandPath(cmd))
		defer func() {
			span.End(s, err)
			if terr := writeTrace(path, recorder); terr != nil {
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

// traceable returns an error if no trace can be written to path. It changes nothing.
func traceable(path string) error {
	old, err := regfile.OpenFile(path, os.O_WRONLY, 0)
	switch {
	case err == nil:
		err = old.Close()
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return err
	}
	trial, err := atomicfile.Create(path, atomicfile.Options{})
	if err != nil {
		return err
	}
	return trial.Abandon()
}

func writeTrace(path string, recorder *tracefile.Recorder) error {
	file, err := atomicfile.Create(path, atomicfile.Options{})
	if err != nil {
		return err
	}
	if err := recorder.Write(file); err != nil {
		return errors.Join(err, file.Abandon())
	}
	return file.Commit()
}
