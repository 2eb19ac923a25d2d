package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"
)

func doctorCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "doctor", Usage: "say what this host lacks, and the command that mends it",
		Description: "Exit code 1 when something that is needed is missing.\n\n" +
			examples("strata doctor", "strata --json doctor", "strata doctor --containerd"),
		Flags: []cli.Flag{&cli.BoolFlag{Name: "containerd",
			Usage: "also ask for what containerd needs to run containers in VMs"}},
		Action: e.doctor,
	}}
}

// finding is the result of one check of the host.
type finding struct {
	What   string `json:"what"`
	State  string `json:"state"` // ok, note or missing
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// The states of a finding. A note is a recommendation, not an error.
const (
	ok      = "ok"
	note    = "note"
	missing = "missing"
)

// question is one check of the host. Its error is the problem; the remedy is a command or advice.
type question struct {
	what   string
	needed bool
	remedy string
	ask    func(context.Context, *env, *cli.Command) (detail string, err error)
}

// remedyError overrides the remedy of a question.
type remedyError struct {
	error
	remedy string
}

func (r *remedyError) Unwrap() error { return r.error }

func (q question) answer(ctx context.Context, e *env, cmd *cli.Command) finding {
	detail, err := q.ask(ctx, e, cmd)
	if err == nil {
		return finding{What: q.what, State: ok, Detail: detail}
	}
	f := finding{What: q.what, State: note, Detail: err.Error(), Remedy: q.remedy}
	if q.needed {
		f.State = missing
	}
	if r, ok := errors.AsType[*remedyError](err); ok {
		f.Remedy = r.remedy
	}
	return f
}

func (e *env) doctor(ctx context.Context, cmd *cli.Command) error {
	var all []finding
	bad := 0
	questions := append(hostQuestions(), question{
		what: "state directory", needed: true, remedy: "give another one with --state-dir or STRATA_STATE_DIR",
		ask: askStateDir,
	})
	if cmd.Bool("containerd") {
		questions = append(questions, containerdQuestions()...)
	}
	for _, q := range questions {
		f := q.answer(ctx, e, cmd)
		if f.State == missing {
			bad++
		}
		all = append(all, f)
	}
	err := e.print(cmd, all, func(w io.Writer) {
		for _, f := range all {
			row(w, "%s\t%s\t%s\n", f.State, f.What, f.Detail)
			if f.Remedy != "" {
				row(w, "\t\t→ %s\n", f.Remedy)
			}
		}
	})
	if bad > 0 {
		err = errors.Join(&exitError{code: exitFailure,
			err: fmt.Errorf("this host lacks %d of the things that are needed", bad)}, err)
	}
	return err
}

// askStateDir checks that the state directory, or the directory in which it would be created, is writable.
func askStateDir(_ context.Context, e *env, cmd *cli.Command) (string, error) {
	dir, err := e.stateDir(cmd)
	if err != nil {
		return "", err
	}
	exists := dir
	for {
		if _, err := os.Stat(exists); err == nil || exists == filepath.Dir(exists) {
			break
		}
		exists = filepath.Dir(exists)
	}
	f, err := os.CreateTemp(exists, ".strata-doctor-")
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return "", err
	}
	free, err := freeSpace(exists)
	if err != nil {
		return printable(dir) + " can be written", nil
	}
	return fmt.Sprintf("%s can be written, %s free", printable(dir), size(int64(free))), nil
}
