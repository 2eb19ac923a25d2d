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

// traced is a command's action in a span of its own, with a file of the trace when it ends, however it ends. Until then
// what had its name stays, but a place where none can be written is an error before anything is done. The
// supervisor of a detached container has the arguments of the command that made it, whose trace it would overwrite.
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

// traceable reports why no trace can be written to path. It changes nothing there.
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
