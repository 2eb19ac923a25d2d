package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/regfile"
)

// templateLog is the log of the process that makes a template in the background, in the templates' cache folder.
const templateLog = "template.log"

// maxTemplateLog is the size in bytes above which templateLog is truncated before it is written again.
const maxTemplateLog = 64 << 10

// templateFlags are the flags of vm start, except those that choose a template.
func templateFlags() []cli.Flag {
	return slices.DeleteFunc(startFlags("memory", "cpus"), func(f cli.Flag) bool {
		return slices.Contains([]string{"template", "no-template"}, f.Names()[0])
	})
}

// templateMade is what vm template prints.
type templateMade struct {
	Made bool `json:"made"` // false: it existed
}

func (e *env) vmTemplate(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Present() {
		return usage(cmd, "it takes no arguments: a template is of all VMs of a kind")
	}
	o, err := e.vmOptions(cmd, "")
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "make a template of VMs with %d MiB", o.MemoryMiB)
	}
	start := time.Now()
	done := e.status("making a template of VMs ...")
	made, err := strata.MakeTemplate(ctx, o)
	done()
	if err != nil {
		return fmt.Errorf("make a template of VMs: %w", err)
	}
	return e.print(cmd, templateMade{made}, func(w io.Writer) {
		if made {
			fmt.Fprintf(w, "template: made in %s\n", time.Since(start).Round(time.Millisecond))
			return
		}
		fmt.Fprintln(w, "template: it is there already")
	})
}

// templateBehind makes the start of a VM not wait for a missing template. The caller must call behind once the VM runs:
// it starts a process that makes the template, if there is none.
func (e *env) templateBehind(cmd *cli.Command, o *strata.VMOptions) (behind func()) {
	missing := false
	o.TemplateMissing = func() { missing = true }
	return func() {
		if !missing {
			return
		}
		if err := e.startTemplate(cmd, *o); err != nil {
			e.logger(cmd).Warn("no template of this kind of VM is made", "error", err)
		}
	}
}

// startTemplate starts strata vm template in a session of its own, without a terminal.
func (e *env) startTemplate(cmd *cli.Command, o strata.VMOptions) error {
	state, err := e.stateDir(cmd)
	if err != nil {
		return err
	}
	cache, err := e.templateCache(cmd)
	if err != nil {
		return err
	}
	args := []string{"--state-dir", state, "vm", "template", "--memory", strconv.Itoa(o.MemoryMiB) + "M",
		"--accel", o.Accel}
	if o.CPUs > 0 {
		args = append(args, "--cpus", strconv.Itoa(o.CPUs))
	}
	for flag, path := range map[string]string{"--kernel": o.Boot.Kernel, "--guest-init": o.Boot.InitPath} {
		if path == "" {
			continue
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
		args = append(args, flag, path)
	}
	path := filepath.Join(cache, templateLog)
	log, err := openTemplateLog(path)
	if err != nil {
		return err
	}
	defer log.Close()
	e.logger(cmd).Info("a template of this kind of VM is made in the background", "log", path)
	return spawnAlone(args, log)
}

// openTemplateLog opens the log for appending, as another process may still write to it.
func openTemplateLog(path string) (*os.File, error) {
	log, err := regfile.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := log.Stat()
	if err == nil && fi.Size() > maxTemplateLog {
		err = log.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return log, nil
}
