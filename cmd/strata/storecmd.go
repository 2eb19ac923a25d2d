package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/uvm"
)

func storeCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "store", Usage: "the layers of images on disk",
		Commands: []*cli.Command{
			{Name: "gc", Usage: "remove layers that no image needs and no VM has mounted, and old templates of VMs",
				Description: "A template goes that was not used for a week (with --templates: any) and whose memory no VM\n" +
					"shares.\n\n" +
					examples("strata store gc", "strata --dry-run store gc   # only say what would go"),
				Flags: []cli.Flag{&cli.BoolFlag{Name: "templates",
					Usage: "all templates whose memory no VM shares; the next start with --template boots"}},
				Action: e.storeGC},
			{Name: "check", Usage: "read every layer and compare it with what was written", Action: e.storeCheck,
				Description: "With --repair damaged layers are thrown away, and the images that need them imported again\n" +
					"from where they came. The exit code is 1 when something is left damaged.\n\n" +
					examples("strata store check", "strata store check --repair"),
				Flags: []cli.Flag{&cli.BoolFlag{Name: "repair", Usage: "import damaged layers again"}, maxLayerSizeFlag(),
					plainHTTP()}},
		},
	}}
}

// errNoStore is returned in a dry run, which creates no store, if nothing was imported yet.
var errNoStore = errors.New("there is no store yet")

// openStore opens the store in the state directory.
func (e *env) openStore(ctx context.Context, cmd *cli.Command) (*store.Store, error) {
	state, err := e.stateDir(cmd)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(state, "store")
	if cmd.Bool("dry-run") && !exists(dir) {
		return nil, fmt.Errorf("%w in %s", errNoStore, printable(dir))
	}
	return store.Open(ctx, dir, store.Options{
		Logger: e.logger(cmd), Share: shareLayer(),
		InUse: func(context.Context) ([]string, error) { return e.layersInUse(cmd) },
	})
}

// layersInUse returns the layers in the ledgers of all VMs, running or not, and those of containers that may be started
// again.
func (e *env) layersInUse(cmd *cli.Command) ([]string, error) {
	names, err := e.vmNames(cmd)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		dir, err := e.vmDir(cmd, name)
		if err != nil {
			return nil, err
		}
		status, err := uvm.ReadStatus(dir)
		if err != nil {
			return nil, fmt.Errorf("VM %q: %w; strata recover mends or removes it", name, err)
		}
		for _, c := range status.Claims {
			var meta layers.Meta
			if len(c.Meta) == 0 {
				continue
			}
			if err := json.Unmarshal(c.Meta, &meta); err != nil {
				return nil, fmt.Errorf("VM %q, container %q: %w", name, c.ID, err)
			}
			out = append(out, meta.Layers...)
		}
	}
	kept, err := e.layersOfContainers(cmd)
	return append(out, kept...), err
}

func (e *env) storeGC(ctx context.Context, cmd *cli.Command) error {
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	r, err := st.GC(ctx, cmd.Bool("dry-run"))
	if err != nil {
		return err
	}
	err = e.templateGC(ctx, cmd, &r) // on error, still print what was removed
	return errors.Join(err, e.print(cmd, r, func(w io.Writer) {
		verb := "removed"
		if cmd.Bool("dry-run") {
			verb = "would be removed"
		}
		for _, o := range r.Objects {
			row(w, "%s\t%s\n", verb, o)
		}
		for o, owner := range r.Held {
			row(w, "kept for %s\t%s\n", owner, o)
		}
		fmt.Fprintf(w, "%s %s\n", size(r.Bytes), map[bool]string{false: "freed", true: "would be freed"}[cmd.Bool("dry-run")])
	}))
}

func (e *env) storeCheck(ctx context.Context, cmd *cli.Command) error {
	limit, err := maxLayerSize(cmd)
	if err != nil {
		return err
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	r, err := st.Check(ctx)
	if err != nil {
		return err
	}
	var rerr error
	if cmd.Bool("repair") && len(r.Problems) > 0 && !cmd.Bool("dry-run") {
		for _, p := range r.Problems {
			e.say("strata: %s: %s", p.Object, printable(p.Reason))
		}
		rerr = st.Repair(ctx, r, func(ctx context.Context, i store.Image) error { return e.reimport(ctx, cmd, st, i, limit) })
		if r, err = st.Check(ctx); err != nil {
			return errors.Join(rerr, err)
		}
	}
	err = e.print(cmd, r, func(w io.Writer) {
		for _, p := range r.Problems {
			fmt.Fprintf(w, "%s: %s", p.Object, printable(p.Reason))
			for _, name := range p.Images {
				fmt.Fprintf(w, "; needed by %s", printable(name))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s, %s, %s: %s\n", count(r.Images, "image"), count(r.Layers, "layer"), size(r.Bytes),
			count(len(r.Problems), "problem"))
	})
	if err := errors.Join(rerr, err); err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		return fmt.Errorf("the store is damaged; to import the images concerned again: strata store check --repair")
	}
	return nil
}

// reimport imports an image again from its source, in the same formats and for the same platform.
func (e *env) reimport(ctx context.Context, cmd *cli.Command, st *store.Store, old store.Image,
	limit int64) (err error) {
	src, err := image.ParseSource(old.Source)
	if err != nil {
		return err
	}
	bars := e.bars(cmd)
	defer bars.finish()
	o := image.Options{MaxLayerBytes: limit, PlainHTTP: cmd.Bool("plain-http"), OnRetry: bars.retry}
	if p, err := image.ParsePlatform(old.Platform); err == nil {
		o.Platform = p
	}
	img, closeImage, err := openImage(ctx, st, src, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeImage()) }()
	if img.Digest != old.Digest {
		e.say("strata: %s has changed: it was %s and is %s", printable(old.Source), old.Digest, img.Digest)
	}
	var fs []store.Format
	for _, name := range old.Formats {
		f, err := store.ParseFormat(name)
		if err != nil {
			return err
		}
		fs = append(fs, f)
	}
	_, err = img.Import(ctx, st, image.ImportOptions{Name: old.Name, Formats: fs, MaxLayerBytes: limit,
		Progress: bars.tell})
	return err
}
