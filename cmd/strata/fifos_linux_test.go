package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
)

// fifos puts a FIFO in the place of each file of the state directory, one after the other, and runs commands
// meanwhile, those that read what is in the folder of the state directory that the file is in: whatever they say of it,
// they end. but are parts of paths that are not ours to read.
func (c cliBox) fifos(commands map[string][][]string, but ...string) {
	t := c.t
	t.Helper()
	aside := filepath.Join(t.TempDir(), "aside")
	var files []string
	if err := filepath.WalkDir(c.state, func(path string, d fs.DirEntry, err error) error {
		for _, part := range but {
			if strings.Contains(path, part) {
				return fs.SkipDir
			}
		}
		// One that a killed command left half written is read by nobody.
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), atomicfile.Prefix) {
			files = append(files, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if err := os.Rename(file, aside); errors.Is(err, fs.ErrNotExist) {
			continue // a command has tidied up
		} else if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(c.state, file)
		if err != nil {
			t.Fatal(err)
		}
		folder, _, _ := strings.Cut(rel, "/")
		if len(commands[folder]) == 0 {
			t.Errorf("no command is known that reads %s", rel)
		}
		for _, args := range commands[folder] {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			cmd := exec.CommandContext(ctx, c.strata, args...)
			cmd.Env = c.cmd().Env
			cmd.WaitDelay = time.Second
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil {
				t.Errorf("strata %q waits for a FIFO in the place of %s: %v, %s", args, file, err, out)
			}
			cancel()
		}
		if err := errors.Join(os.RemoveAll(file), os.Rename(aside, file)); err != nil || t.Failed() {
			t.Fatal("with a FIFO in the place of ", file, ": ", err)
		}
	}
	if len(files) < 8 {
		t.Errorf("the state directory has %d files only: %q", len(files), files)
	}
}

// TestFIFOs: no command waits for a FIFO in the place of a file of the state directory. crun would wait for one in
// the place of its own.
func TestFIFOs(t *testing.T) {
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	run := []string{"run", "--isolation=process", "-v", "data:/data", root, "/bin/busybox", "true"}
	c.run(run...)
	c.run("run", "-d", "--isolation=process", "--name", "once", root, "/bin/busybox", "echo", "said")
	c.run("run", "-d", "--isolation=process", "--name", "web", "-v", "data:/data", root, "/bin/busybox", "sleep", "1000")
	beside := []string{"exec", "web", "/bin/busybox", "true"}
	c.fifos(map[string][][]string{
		"containers": {{"ps", "-a"}, {"inspect", "web"}, {"logs", "once"}, {"start", "once"}, beside, {"volume", "ls"}},
		"run":        {{"ps"}, {"recover"}, beside, {"start", "once"}},
		"store":      {{"image", "ls"}, {"store", "check"}, {"store", "gc"}, run},
		"vms": {{"ls"}, {"vm", "ls"}, {"vm", "inspect", "host"}, {"recover"}, beside, {"start", "once"}, run,
			{"--dry-run", "vm", "stop", "host"}},
		"volumes": {{"volume", "ls"}, {"volume", "inspect", "data"}, run},
	}, "/host/fs", "/state/c", "/scratch")
	if out := c.run("exec", "web", "/bin/busybox", "echo", "fine"); out != "fine\n" {
		t.Errorf("after all that: %q", out)
	}
}
