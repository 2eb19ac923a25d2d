package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/store"
)

// inspected is the output of image inspect.
type inspected struct {
	store.Image
	Run     image.Config        `json:"run"`     // how its program is run
	Folders map[string][]string `json:"folders"` // layer folders by format, topmost first
}

func (e *env) imageInspect(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give at least one image")
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	out := []inspected{}
	for _, ref := range cmd.Args().Slice() {
		img, err := findImage(st, ref)
		if wanted := cmd.String("platform"); errors.Is(err, store.ErrNotFound) || err == nil &&
			!samePlatform(wanted, img.Platform) {
			img, err = e.describeSource(ctx, cmd, ref)
		}
		if err != nil {
			return err
		}
		i := inspected{Image: img, Folders: map[string][]string{}}
		if i.Run, err = image.ParseConfig(img.Config); err != nil {
			return fmt.Errorf("image %s: %w", printable(img.Name), err)
		}
		for _, name := range img.Formats {
			f, err := store.ParseFormat(name)
			if err != nil {
				return err
			}
			if i.Folders[name], err = st.Folders(img, f); err != nil {
				return err
			}
		}
		out = append(out, i)
	}
	return e.print(cmd, out, func(w io.Writer) {
		for _, i := range out {
			imported := "no"
			if !i.Imported.IsZero() {
				imported = i.Imported.Format(time.DateTime)
			}
			row(w, "Name:\t%s\nDigest:\t%s\nSource:\t%s\nPlatform:\t%s\nImported:\t%s\n",
				i.Name, i.Digest, i.Source, i.Platform, imported)
			row(w, "Entrypoint:\t%q\nCmd:\t%q\nEnv:\t%q\nWorkdir:\t%s\nUser:\t%s\n",
				i.Run.Entrypoint, i.Run.Cmd, i.Run.Env, i.Run.WorkingDir, i.Run.User)
			writeRun(w, i.Run)
			for n, l := range i.Layers {
				row(w, "Layer %d:\t%s\n", n+1, l.DiffID)
			}
			for _, f := range i.Formats {
				for n, dir := range slices.Backward(i.Folders[f]) {
					row(w, "Folder %d (%s):\t%s\n", len(i.Folders[f])-n, f, dir)
				}
			}
		}
	})
}

// writeRun prints the optional fields of an image's configuration that are set.
func writeRun(w io.Writer, c image.Config) {
	if c.StopSignal != "" {
		row(w, "Stop signal:\t%s\n", c.StopSignal)
	}
	for _, l := range []struct {
		name string
		list []string
	}{{"Volumes", c.Volumes}, {"Ports", c.Ports}, {"Shell", c.Shell}} {
		if len(l.list) > 0 {
			row(w, "%s:\t%q\n", l.name, l.list)
		}
	}
	if h := c.Healthcheck; h != nil {
		row(w, "Healthcheck:\t%q%s (shown only: Strata does not run it)\n", h.Test, whenChecked(*h))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		row(w, "Label:\t%q = %q\n", name, c.Labels[name])
	}
}

// whenChecked is what an image says of when and how often its health is looked at.
func whenChecked(h image.Healthcheck) string {
	var parts []string
	for _, p := range []struct {
		text string
		d    time.Duration
	}{{"every", h.Interval}, {"within", h.Timeout}, {"start period", h.StartPeriod}} {
		if p.d != 0 {
			parts = append(parts, fmt.Sprintf(" %s %s", p.text, p.d))
		}
	}
	if h.Retries == 1 {
		parts = append(parts, " 1 retry")
	} else if h.Retries != 0 {
		parts = append(parts, fmt.Sprintf(" %d retries", h.Retries))
	}
	return strings.Join(parts, ",")
}

// describeSource returns the store record that an image outside the store would have.
func (e *env) describeSource(ctx context.Context, cmd *cli.Command, ref string) (rec store.Image, err error) {
	src, err := image.ParseSource(ref)
	if err != nil {
		return rec, fmt.Errorf("image %s: %w; it is not in the store either", printable(ref), err)
	}
	o, err := imageOptions(cmd, 0)
	if err != nil {
		return rec, err
	}
	bars := e.bars(cmd)
	defer bars.finish()
	o.OnRetry = bars.retry
	img, err := image.Open(ctx, src, o)
	if err != nil {
		return rec, fmt.Errorf("%w; it is not in the store either", err)
	}
	rec = store.Image{Name: img.Name, Digest: img.Digest, Source: img.Source.String(), Platform: img.Platform.String(),
		Created:  img.Created,
		Manifest: img.Manifest, Config: img.RawConfig, Formats: []string{}}
	for _, l := range img.Layers {
		rec.Layers = append(rec.Layers, store.ImageLayer{DiffID: l.DiffID, Digest: l.Digest, MediaType: l.MediaType,
			Size: l.Size})
	}
	return rec, img.Close()
}
