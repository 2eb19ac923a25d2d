package procs

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/vmm"
)

// SetInit sets the init program of containers whose spec asks for one; empty: there is none.
func (t *Table) SetInit(path string) { t.init = path }

// wantsInit reports whether the container's spec asks for an init process.
func (c *container) wantsInit() bool {
	return c.doc != nil && c.doc.Annotations[ocispec.InitAnnotation] == "true"
}

// addInit makes the init program the container's first process, which starts that of cmd.
func (t *Table) addInit(root rootDir, spec *specs.Spec, cmd command) error {
	if t.init == "" {
		return fmt.Errorf("a container that begins with an init needs catatonit; install it with: "+
			"apt-get install catatonit: %w", gcsserver.ErrUnsupported)
	}
	// Checked here, because a failure of the init only shows as exit code 1 and a message on standard error.
	if err := root.checkProgram(cmd, spec.Mounts); err != nil {
		return err
	}
	spec.Process.Args = append([]string{ocispec.InitPath, "--"}, spec.Process.Args...)
	return addProgram(spec, ocispec.InitPath, t.init)
}

// checkProgram checks that a program exists in a root and is executable. One below one of mounts cannot be checked yet.
func (r rootDir) checkProgram(cmd command, mounts []specs.Mount) error {
	names := cmd.candidates()
	if slices.ContainsFunc(names, func(name string) bool { return ocispec.Covered(name, mounts) }) {
		return nil
	}
	if f := r.find(cmd); f != nil {
		return f.Close()
	}
	for _, name := range names {
		f, err := r.open(name, unix.O_PATH)
		if err == nil {
			f.Close()
			return programError(cmd.Args[0], unix.EACCES)
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return programError(cmd.Args[0], err)
		}
	}
	return fmt.Errorf("program %q: %w", cmd.Args[0], vmm.ErrProgramNotFound)
}
