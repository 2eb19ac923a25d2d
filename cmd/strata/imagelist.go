package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/store"
)

// listed is a line of image ls.
type listed struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"`
	Platform string    `json:"platform"`
	Layers   int       `json:"layers"`
	Size     int64     `json:"size"` // bytes of its layers in the store, in all formats; -1: unknown
	Formats  []string  `json:"formats"`
	Imported time.Time `json:"imported"`
}

func imageListFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only the digests"},
		&cli.BoolFlag{Name: "no-trunc", Usage: "whole digests"},
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Hidden: true, Usage: "there are no others"},
		&cli.BoolFlag{Name: "digests", Hidden: true, Usage: "they are shown anyway"},
		&cli.StringFlag{Name: "format",
			Usage: "`TEMPLATE` of Go for each, such as '{{.Name}} {{.Digest}}'; json: as --json"},
	}
}

func (e *env) imageList(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() > 1 {
		return usage(cmd, "give one name or pattern of images, or none")
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	images, err := st.Images()
	list := []listed{}
	for _, i := range images {
		if wanted := cmd.Args().First(); wanted != "" && !imageMatches(wanted, i.Name) {
			continue
		}
		n, serr := st.Size(i)
		if serr != nil {
			n = -1 // strata store check reports the problem
		}
		list = append(list, listed{i.Name, i.Digest, i.Platform, len(i.Layers), n, i.Formats, i.Imported})
	}
	switch f := cmd.String("format"); {
	case cmd.Bool("json"), f == "", f == "table":
	case f == "json":
		return errors.Join(err, writeJSON(e.stdout, list, "  "))
	default:
		return errors.Join(err, formatEach(e, cmd, list))
	}
	digest := func(i listed) string {
		if cmd.Bool("no-trunc") {
			return i.Digest
		}
		return i.Digest[:min(len(i.Digest), len("sha256:")+12)]
	}
	perr := e.print(cmd, list, func(w io.Writer) {
		if cmd.Bool("quiet") {
			for _, i := range list {
				row(w, "%s\n", digest(i))
			}
			return
		}
		fmt.Fprintln(w, "NAME\tDIGEST\tPLATFORM\tLAYERS\tSIZE\tFORMATS\tIMPORTED")
		for _, i := range list {
			row(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", i.Name, digest(i), i.Platform, i.Layers, known(i.Size),
				strings.Join(i.Formats, ","), i.Imported.Format(time.DateTime))
		}
	})
	return errors.Join(err, perr)
}

// known formats a size; -1 is "?".
func known(n int64) string {
	if n < 0 {
		return "?"
	}
	return size(n)
}

func (e *env) imageRemove(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give at least one image")
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	removed := []string{}
	var errs []error
	for _, ref := range cmd.Args().Slice() {
		img, err := findImage(st, ref)
		if err == nil && cmd.Bool("dry-run") {
			errs = append(errs, e.would(cmd, "remove image %s", printable(img.Name)))
			continue
		}
		if err == nil {
			err = st.Remove(ctx, img.Name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, img.Name)
	}
	if cmd.Bool("dry-run") {
		return errors.Join(errs...)
	}
	var freed store.Removed
	if !cmd.Bool("keep-layers") && len(removed) > 0 {
		if freed, err = st.GC(ctx, false); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, e.print(cmd, struct {
		Removed []string `json:"removed"`
		Bytes   int64    `json:"bytes"`
	}{removed, freed.Bytes}, func(w io.Writer) {
		for _, name := range removed {
			fmt.Fprintf(w, "%s: removed\n", printable(name))
		}
		if freed.Bytes > 0 {
			fmt.Fprintf(w, "%s freed\n", size(freed.Bytes))
		}
	}))
	return errors.Join(errs...)
}

func imageRemoveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "keep-layers", Usage: "leave the layers, for images that come later"},
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Hidden: true, Usage: "it does not ask anyway"},
	}
}

func tagCommand(e *env) *cli.Command {
	return &cli.Command{Name: "tag", Usage: "give an image in the store one name more", ArgsUsage: "IMAGE NAME",
		Description: "IMAGE is a name in the store, or the first digits of a digest. An image that had the NAME\n" +
			"loses it.\n\n" +
			examples("strata tag debian:12 base", "strata tag 0b1c2d3e registry.example/team/app:v2"),
		Action: e.imageTag}
}

func (e *env) imageTag(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 2 {
		return usage(cmd, "give an image and its new name")
	}
	src, err := image.ParseSource("docker://" + cmd.Args().Get(1))
	if err != nil || strings.Contains(src.Name, "@") {
		return usage(cmd, "%q cannot be the name of an image: give NAME[:TAG], such as app:v2", cmd.Args().Get(1))
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	img, err := findImage(st, cmd.Args().First())
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "name image %s also %s", printable(img.Name), printable(src.Name))
	}
	if img, err = st.Tag(ctx, img.Name, src.Name); err != nil {
		return err
	}
	return e.print(cmd, struct {
		Name   string `json:"name"`
		Digest string `json:"digest"`
	}{img.Name, img.Digest}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", printable(img.Name), printable(img.Digest))
	})
}

// imagePrune removes unused layers, and with --all also images that no container uses.
func (e *env) imagePrune(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Bool("all") {
		return e.storeGC(ctx, cmd)
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return err
	}
	used, err := e.layersInUse(cmd)
	if err != nil {
		return err
	}
	images, err := st.Images()
	errs := []error{err}
	for _, img := range images {
		if inUse(st, img, used) {
			continue
		}
		switch {
		case cmd.Bool("dry-run"):
			errs = append(errs, e.would(cmd, "remove image %s", printable(img.Name)))
		default:
			errs = append(errs, st.Remove(ctx, img.Name))
		}
	}
	return errors.Join(append(errs, e.storeGC(ctx, cmd))...)
}

// inUse reports whether one of an image's layer directories is in used.
func inUse(st *store.Store, img store.Image, used []string) bool {
	for _, name := range img.Formats {
		f, err := store.ParseFormat(name)
		if err != nil {
			return true // a format of a later version of this program
		}
		folders, err := st.Folders(img, f)
		if err != nil || len(folders) > 0 && slices.Contains(used, folders[0]) {
			return true
		}
	}
	return false
}
