package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v3"
)

// TestRunArgs: what on a command line of run is the image, what a layer, what the program, and what is passed on.
func TestRunArgs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"app", "base"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	type result struct{ Roots, Program, Env []string }
	for _, tt := range []struct {
		line []string
		want *result // nil: refused
	}{
		{[]string{"debian:12"}, &result{Roots: []string{"debian:12"}}},
		{[]string{"debian:12", "cat", "-n", "/x"}, &result{[]string{"debian:12"}, []string{"cat", "-n", "/x"}, nil}},
		{[]string{"debian:12", "--", "cat", "-n"}, &result{[]string{"debian:12"}, []string{"cat", "-n"}, nil}},
		{[]string{"debian:12", "git", "log", "--", "x"}, &result{[]string{"debian:12"}, []string{"git", "log", "--", "x"},
			nil}},
		{[]string{"debian:12", "--", "git", "--", "x"}, &result{[]string{"debian:12"}, []string{"git", "--", "x"}, nil}},
		{[]string{"-e", "A=b=c", "debian:12", "-e", "x"}, &result{[]string{"debian:12"}, []string{"-e", "x"},
			[]string{"A=b=c"}}},
		{[]string{"-e", "SET", "-e", "EMPTY", "-e", "UNSET", "debian:12", "x"},
			&result{[]string{"debian:12"}, []string{"x"}, []string{"SET=1", "EMPTY="}}},
		{[]string{"./app", "./base", "--", "sh"}, &result{[]string{"./app", "./base"}, []string{"sh"}, nil}},
		{[]string{"./app", "./base"}, nil},
		{[]string{"./app"}, nil},
		{[]string{"-e", "=x", "debian:12", "x"}, nil},
		{nil, nil},
	} {
		var got *result
		e := &env{stdin: os.Stdin, stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" },
			lookupEnv: func(key string) (string, bool) {
				value, ok := map[string]string{"SET": "1", "EMPTY": ""}[key]
				return value, ok
			}}
		head, tail := splitArgs(append([]string{"strata", "run"}, tt.line...))
		e.command, e.dashes = tail, len(head) < len(tt.line)+2
		root := e.root()
		for _, c := range root.Commands {
			if c.Name == "run" {
				c.Action = func(_ context.Context, cmd *cli.Command) error {
					roots, program, err := e.runArgs(cmd)
					if err != nil {
						return err
					}
					env, err := e.environment(cmd)
					got = &result{roots, program, env}
					return err
				}
			}
		}
		if err := root.Run(t.Context(), head); err != nil {
			got = nil
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("strata run %q: %s", tt.line, d)
		}
	}
}
