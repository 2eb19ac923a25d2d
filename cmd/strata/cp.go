package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/plaintext"
	"github.com/stratavm/strata/internal/treecopy"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

func copyCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "cp", Usage: "copy files between a container that is mounted and this system",
		ArgsUsage: "CONTAINER:PATH DEST|- | SOURCE|- CONTAINER:PATH",
		Description: "Names are as docker cp has them: into a folder that exists, else under the name given; a SOURCE\n" +
			"that ends in /. stands for what is in it. \"-\" is a tar on standard input or output. Links of the container\n" +
			"lead inside its root. Volumes are not seen: they are folders of this system.\n\n" +
			examples("strata cp web:/etc/nginx ./conf", "strata cp site/. web:/srv/www", "strata cp web:/var/log - | tar t"),
		Flags: []cli.Flag{vmFlag(),
			&cli.BoolFlag{Name: "archive", Aliases: []string{"a"}, Usage: "into a container: files keep their owners"}},
		Action: e.cp,
	}}
}

// splitCopy splits CONTAINER:PATH; container is empty for a path of this system.
func splitCopy(arg string) (container, name string) {
	c, p, ok := strings.Cut(arg, ":")
	if !ok || c == "" || strings.ContainsAny(c, `/\`) || c == "." || onWindows && len(c) == 1 {
		return "", arg
	}
	return c, p
}

func (e *env) cp(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 2 {
		return usage(cmd, "give a source and a destination")
	}
	fromContainer, from := splitCopy(cmd.Args().Get(0))
	toContainer, to := splitCopy(cmd.Args().Get(1))
	switch {
	case (fromContainer == "") == (toContainer == ""):
		return usage(cmd, "one of source and destination is CONTAINER:PATH")
	case from == "" || to == "":
		return usage(cmd, "a path is empty")
	}
	place, done, err := e.copyPlace(ctx, cmd, fromContainer+toContainer)
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		err = e.would(cmd, "copy %s to %s", cmd.Args().Get(0), cmd.Args().Get(1))
	} else if fromContainer != "" {
		err = e.copyOut(ctx, place, from, to)
	} else {
		err = e.copyIn(ctx, place, from, to, cmd.Bool("archive"))
	}
	return errors.Join(err, done())
}

// copyPlace runs a treecopy operation in a container's root, by the guest's agent or this program; see treecopy.Main.
type copyPlace func(ctx context.Context, in io.Reader, out io.Writer, args ...string) error

// copyPlace returns the root of a container. The caller must call done.
func (e *env) copyPlace(ctx context.Context, cmd *cli.Command, ref string) (_ copyPlace, done func() error, err error) {
	name, id := cmd.String("vm"), ref
	if _, r, ok := e.containerOfExec(ctx, cmd, ref); ok {
		name, id = r.VM, r.Name
	}
	dir, err := e.vmDir(cmd, name)
	if err != nil {
		return nil, nil, err
	}
	c, err := layers.Lookup(dir, id)
	if err == nil {
		_, err = c.Process(vmm.ProcessSpec{})
	}
	if err != nil {
		return nil, nil, e.advise(err, name, id)
	}
	if name == hostVM {
		vm, err := e.reopen(ctx, cmd, name)
		if err != nil {
			return nil, nil, err
		}
		h, ok := vm.Machine().(vmm.HostPather)
		if !ok {
			return nil, nil, errors.Join(fmt.Errorf("copy from this system: %w", errors.ErrUnsupported), vm.Close())
		}
		return hostPlace(h.HostPath(c.Root)), vm.Close, nil
	}
	r, err := strata.OpenRunner(ctx, dir, e.openOptions(cmd))
	if err != nil {
		return nil, nil, e.explain(name, err)
	}
	return guestPlace(r, c.Root), r.Close, nil
}

// hostPlace is a root of this system.
func hostPlace(root string) copyPlace {
	return func(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
		words := plaintext.NewHead(maxSaid)
		if in != nil {
			limited := interruptible(ctx, in)
			defer limited.Close()
			in = limited
		}
		out = whileAlive{ctx, out}
		if treecopy.Main(append([]string{args[0], root}, args[1:]...), in, out, words) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errors.New(strings.TrimSpace(words.String()))
	}
}

// whileAlive is a writer that fails after ctx has ended.
type whileAlive struct {
	ctx context.Context
	to  io.Writer
}

// Write implements io.Writer.
func (w whileAlive) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.to.Write(b)
}

// maxSaid bounds what is kept of a guest's output, in bytes.
const maxSaid = 2000

// guestPlace is a root in a VM.
func guestPlace(r strata.Runner, root string) copyPlace {
	return func(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
		words := plaintext.NewHead(maxSaid)
		p, err := r.Exec(ctx, vmm.ProcessSpec{Stdin: in, Stdout: out, Stderr: words,
			Args: append([]string{"/init", treecopy.Flag, args[0], root}, args[1:]...)})
		if err != nil {
			return err
		}
		code, err := p.Wait(ctx)
		err = errors.Join(err, p.Close())
		if err == nil && code != 0 {
			err = fmt.Errorf("the guest says: %s", printable(strings.TrimSpace(words.String())))
		}
		return err
	}
}

// stat returns the type of the file at a path.
func (p copyPlace) stat(ctx context.Context, how, name string) (string, error) {
	out := plaintext.NewHead(maxSaid)
	err := p(ctx, nil, out, how, name)
	return strings.TrimSpace(out.String()), err
}

// statHere is stat for a path of this system. It follows links.
func statHere(name string) (string, error) {
	fi, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return treecopy.Absent, nil
	case err != nil:
		return "", err
	case fi.IsDir():
		return treecopy.Folder, nil
	}
	return treecopy.File, nil
}

// copySource returns the name of the source, and whether its contents are to be copied rather than itself.
func copySource(name string, slash func(string) string) (base string, contents bool) {
	s := slash(name)
	base = path.Base(path.Clean(s))
	return base, s == "." || strings.HasSuffix(s, "/.") || base == "/" || base == "." || base == ".."
}

// copyTarget returns the directory to unpack the tar in, and the name of the source in it, as docker cp chooses them.
// what is the type of dest.
func copyTarget(what, dest, base string, contents, folder bool) (into, as string, err error) {
	switch {
	case what == treecopy.Folder && contents:
		return dest, ".", nil
	case what == treecopy.Folder:
		return dest, base, nil
	case folder && what != treecopy.Absent:
		return "", "", fmt.Errorf("%s is no folder: a folder cannot be copied over it", printable(dest))
	case !folder && (strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")):
		return "", "", fmt.Errorf("there is no folder %s", printable(dest))
	}
	clean := path.Clean(dest)
	return path.Dir(clean), path.Base(clean), nil
}

// copyOut copies from a container.
func (e *env) copyOut(ctx context.Context, place copyPlace, from, to string) error {
	base, contents := copySource(from, func(s string) string { return s })
	how := "stat"
	if contents {
		how = "follow"
	}
	what, err := place.stat(ctx, how, from)
	if err == nil && what == treecopy.Absent {
		err = fmt.Errorf("there is no %s in the container", printable(from))
	}
	if err != nil {
		return err
	}
	if to == "-" {
		if _, tty := terminal(e.stdout); tty {
			return errors.New("a tar is not for a terminal: redirect standard output to a file or pipe")
		}
		if contents {
			base = "."
		}
		return place(ctx, nil, e.stdout, "pack", from, base)
	}
	there, err := statHere(to)
	if err != nil {
		return err
	}
	into, as, err := copyTarget(there, filepath.ToSlash(to), base, contents, what == treecopy.Folder)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer root.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return treecopy.Pipe(func(w io.Writer) error { return place(ctx, nil, w, "pack", from, as) },
		func(r io.Reader) error {
			err := treecopy.Unpack(r, root, as, treecopy.Ours, e.leftOut)
			if err != nil {
				cancel(err) // do not read the rest, which may be large
			}
			return err
		})
}

func (e *env) leftOut(name, why string) { e.say("strata: %.200q is left out: %s", name, why) }

// copyIn copies into a container.
func (e *env) copyIn(ctx context.Context, place copyPlace, from, to string, archive bool) error {
	there, err := place.stat(ctx, "follow", to)
	if err != nil {
		return err
	}
	how := "unpack"
	if archive {
		how = "restore"
	}
	if from == "-" {
		if there != treecopy.Folder {
			return fmt.Errorf("there is no folder %s in the container", printable(to))
		}
		return place(ctx, e.stdin, io.Discard, how, to)
	}
	what, err := statHere(from)
	if err == nil && what == treecopy.Absent {
		err = fmt.Errorf("there is no %s", printable(from))
	}
	if err != nil {
		return err
	}
	base, contents := copySource(from, filepath.ToSlash)
	into, as, err := copyTarget(there, to, base, contents, what == treecopy.Folder)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	root, name := filepath.Dir(abs), filepath.Base(abs)
	if contents {
		root, name = abs, "."
	}
	opened, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer opened.Close()
	return treecopy.Pipe(func(w io.Writer) error { return treecopy.Pack(w, opened, name, as) },
		func(r io.Reader) error { return place(ctx, r, io.Discard, how, into) })
}
