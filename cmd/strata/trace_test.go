package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/regfile"
)

// TestTraceReplaces: a trace takes the place of another one when the command ends, not before, and nothing lies beside
// it; what is no file keeps its place, and the command does nothing.
func TestTraceReplaces(t *testing.T) {
	path, failed, ran := filepath.Join(t.TempDir(), "t.json"), errors.New("the command fails"), 0
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(file string) error {
		cmd := cli.Command{Name: "strata", Flags: []cli.Flag{traceFlag()},
			Action: traced(func(context.Context, *cli.Command) error {
				if b, err := os.ReadFile(path); err != nil || string(b) != "before" {
					t.Errorf("while the command runs there is %q (%v)", b, err)
				}
				ran++
				return failed
			})}
		return cmd.Run(t.Context(), []string{"strata", "--trace", file})
	}
	if err := run(filepath.Dir(path)); !errors.Is(err, regfile.ErrNotRegular) || ran != 0 {
		t.Errorf("in the place of a folder: %v, %d commands ran", err, ran)
	}
	if err := run(path); !errors.Is(err, failed) || ran != 1 {
		t.Errorf("the command ends with %v, and ran %d times", err, ran)
	}
	if b, err := os.ReadFile(path); err != nil || !json.Valid(b) {
		t.Errorf("the trace is %q (%v)", b, err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("there is %v (%v)", all, err)
	}
}
