package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/store"
)

// sources is the part of the help that says what an image may be.
const sources = "" +
	"IMAGE is a reference of a registry (debian:12, localhost:5000/app@sha256:...), a file or folder that\n" +
	"docker save, podman, skopeo, buildah or umoci wrote, or the tar of a root file system. To say which:\n" +
	"docker://REF, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], tar:FILE.\n"

// imageFlags returns the flags of commands that read images.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		platformFlag(),
		&cli.StringSliceFlag{Name: "format",
			Usage: "of the layers: erofs or vhd (ext4), each also with +verity, or dir (images: repeat; default: erofs, on " +
				"Windows hosts vhd, what is mounted in a user namespace dir)"},
		maxLayerSizeFlag(),
		plainHTTP(),
		&cli.BoolFlag{Name: "any-root",
			Usage: "take a tar for a root file system although it has none of the folders of one"},
	}
}

func platformFlag() cli.Flag {
	return &cli.StringFlag{Name: "platform",
		Usage: "`OS/ARCH[/VARIANT]` of the image (default: linux on this machine's architecture)"}
}

func plainHTTP() cli.Flag {
	return &cli.BoolFlag{Name: "plain-http",
		Usage: "allow plain HTTP for any registry (it is allowed on this machine anyhow)"}
}

func imageCommands(e *env) []*cli.Command {
	return []*cli.Command{
		{
			Name: "pull", Usage: "bring an image into the store", ArgsUsage: "IMAGE...",
			Description: sources + "\nLayers that are in the store already are neither fetched nor converted again.\n\n" +
				examples("strata pull debian:12", "strata pull --platform linux/arm64 alpine", "strata pull oci:./build:latest"),
			Flags: imageFlags(), Action: e.pull,
		},
		{
			Name: "images", Usage: "list the images in the store: strata image ls", Action: e.imageList,
			ArgsUsage: "[NAME]", Flags: imageListFlags(),
			Description: "NAME may be without a tag, and a pattern.\n\n" +
				examples("strata images", "strata images -q", "strata images 'debian*'", "strata --json images"),
		},
		{Name: "rmi", Usage: "remove images: strata image rm", ArgsUsage: "IMAGE...", Action: e.imageRemove,
			Flags: imageRemoveFlags()},
		tagCommand(e),
		{
			Name: "image", Usage: "images in the store",
			Commands: []*cli.Command{
				{Name: "ls", Aliases: []string{"list"}, Usage: "list the images", Action: e.imageList,
					ArgsUsage: "[NAME]", Flags: imageListFlags(),
					Description: examples("strata image ls", "strata --json image ls")},
				{Name: "inspect", Usage: "show all that is known of images, in the store or anywhere else", ArgsUsage: "IMAGE...",
					Action: e.imageInspect,
					Description: "IMAGE is a name in the store, the first digits of a digest, or else what strata pull takes. " +
						"Nothing is\n" +
						"imported, and images that cannot be, such as those of Windows, are described too.\n\n" +
						examples("strata image inspect debian:12", "strata image inspect oci:./build:latest",
							"strata image inspect --platform windows/amd64 docker://mcr.microsoft.com/windows/nanoserver:ltsc2022"),
					Flags: []cli.Flag{platformFlag(), plainHTTP()}},
				{Name: "rm", Aliases: []string{"remove"}, Usage: "remove images, and the layers that nothing else needs",
					ArgsUsage: "IMAGE...", Action: e.imageRemove,
					Description: "What a virtual machine has mounted stays until a later strata store gc.\n\n" +
						examples("strata image rm debian:12", "strata image rm --keep-layers debian:12"),
					Flags: imageRemoveFlags()},
				tagCommand(e),
				{Name: "prune", Usage: "remove layers that no image needs", Action: e.imagePrune,
					Description: "With --all also the images that no container needs.\n\n" +
						examples("strata image prune", "strata --dry-run image prune --all"),
					Flags: []cli.Flag{
						&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also images that no container needs"},
						&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Hidden: true, Usage: "it never asks"}}},
			},
		},
	}
}

// pulled is what pull and import print of an image.
type pulled struct {
	Name      string   `json:"name"`
	Digest    string   `json:"digest"`
	Platform  string   `json:"platform"`
	Layers    int      `json:"layers"`
	Converted int      `json:"converted"` // layers that were not in the store
	Formats   []string `json:"formats"`
	Millis    int64    `json:"milliseconds"`
}

func (e *env) pull(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give at least one image")
	}
	if cmd.Bool("dry-run") {
		var errs []error
		for _, arg := range cmd.Args().Slice() {
			errs = append(errs, e.importDry(cmd, arg))
		}
		return errors.Join(errs...)
	}
	out := []pulled{}
	for _, arg := range cmd.Args().Slice() {
		_, p, err := e.importImage(ctx, cmd, arg, "")
		if err != nil {
			return err
		}
		out = append(out, p)
	}
	return e.printPulled(cmd, out)
}

func (e *env) printPulled(cmd *cli.Command, list []pulled) error {
	return e.print(cmd, list, func(w io.Writer) {
		for _, p := range list {
			fmt.Fprintf(w, "%s: %s, %d converted, in %s\n", printable(p.Name), count(p.Layers, "layer"), p.Converted,
				time.Duration(p.Millis)*time.Millisecond)
		}
	})
}

// formats reads --format.
func formats(cmd *cli.Command) ([]store.Format, error) {
	var out []store.Format
	for _, s := range cmd.StringSlice("format") {
		f, err := store.ParseFormat(s)
		if err != nil {
			return nil, usage(cmd, "--format: %w", err)
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		f := store.Format{File: layerdir.EROFS}
		switch {
		case runtime.GOOS == "windows":
			f.File = layerdir.VHD // the format that Microsoft's guest kernel can mount
		case wantsTrees(cmd):
			f.File = layerdir.Tree
		}
		out = append(out, f)
	}
	return out, nil
}

func maxLayerSizeFlag() cli.Flag {
	return &cli.StringFlag{Name: "max-layer-size", Value: "128G",
		Usage: "refuse layers that unpack to more than this `SIZE`; those of an image that the store lacks may have " +
			"512G, or this, together"}
}

// maxLayerSize reads --max-layer-size, in bytes.
func maxLayerSize(cmd *cli.Command) (int64, error) {
	limit, err := parseSize(cmd.String("max-layer-size"))
	if err != nil {
		return 0, usage(cmd, "--max-layer-size: %w", err)
	}
	return limit, nil
}

// wantsTrees reports whether a command needs layers as directories: it mounts them on this system in a user namespace,
// which cannot mount disk images.
func wantsTrees(cmd *cli.Command) bool {
	return (cmd.String("isolation") == "process" || cmd.String("vm") == hostVM) && userns.Inside()
}

// importImage imports an image from any source into the store.
func (e *env) importImage(ctx context.Context, cmd *cli.Command, text, name string) (store.Image, pulled, error) {
	var none store.Image
	if cmd.Bool("dry-run") {
		return none, pulled{}, notImported(text)
	}
	src, err := image.ParseSource(text)
	if err != nil {
		return none, pulled{}, err
	}
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return none, pulled{}, err
	}
	return e.importSource(ctx, cmd, st, src, name)
}

// importDry prints what importing an image would do, without reading it.
func (e *env) importDry(cmd *cli.Command, text string) error {
	if _, err := image.ParseSource(text); err != nil {
		return err
	}
	return e.would(cmd, "import image %s into the store", printable(text))
}

// notImported is the error of a dry run that needs an image.
func notImported(text string) error {
	return fmt.Errorf("image %s: a dry run imports nothing; import it first: strata pull %s", printable(text),
		printable(text))
}

// imageOptions reads --platform, --plain-http and --any-root. limit is the maximum size of a layer in bytes.
func imageOptions(cmd *cli.Command, limit int64) (o image.Options, err error) {
	o = image.Options{MaxLayerBytes: limit, PlainHTTP: cmd.Bool("plain-http"), AnyRoot: cmd.Bool("any-root")}
	if s := cmd.String("platform"); s != "" {
		if o.Platform, err = image.ParsePlatform(s); err != nil {
			return o, usage(cmd, "--platform: %w", err)
		}
	}
	return o, nil
}

func (e *env) importSource(ctx context.Context, cmd *cli.Command, st *store.Store, src image.Source,
	name string) (rec store.Image, p pulled, err error) {
	start := time.Now()
	fs, err := formats(cmd)
	if err != nil {
		return rec, p, err
	}
	limit, err := maxLayerSize(cmd)
	if err != nil {
		return rec, p, err
	}
	o, err := imageOptions(cmd, limit)
	if err != nil {
		return rec, p, err
	}
	bars := e.bars(cmd)
	defer bars.finish()
	o.OnRetry = bars.retry
	img, closeImage, err := openImage(ctx, st, src, o)
	if errors.Is(err, image.ErrNotRoot) && e.agrees(fmt.Sprintf("%v.\nImport it as a root file system?", err)) {
		o.AnyRoot = true
		img, closeImage, err = openImage(ctx, st, src, o)
	}
	if errors.Is(err, image.ErrNotRoot) {
		err = fmt.Errorf("%w, or --any-root", err)
	}
	if err != nil {
		return rec, p, err
	}
	defer func() { err = errors.Join(err, closeImage()) }()
	if cmd.String("platform") == "" && !img.Platform.RunsOn(runtime.GOARCH) {
		e.say("strata: image %s is for %s: this machine, linux/%s, does not run its programs unless it emulates that",
			printable(img.Name), printable(img.Platform.String()), runtime.GOARCH)
	}
	rec, err = img.Import(ctx, st, image.ImportOptions{Name: name, Formats: fs, MaxLayerBytes: limit, Progress: bars.tell})
	bars.finish()
	if err != nil {
		return rec, p, err
	}
	return rec, pulled{Name: rec.Name, Digest: rec.Digest, Platform: rec.Platform, Layers: len(rec.Layers),
		Converted: bars.converted(),
		Formats:   rec.Formats, Millis: time.Since(start).Milliseconds()}, nil
}

// agrees asks the user a yes/no question; without a terminal the answer is no.
func (e *env) agrees(question string) bool {
	if _, in := terminal(e.stdin); !in {
		return false
	}
	if _, out := terminal(e.stderr); !out {
		return false
	}
	fmt.Fprintf(e.stderr, "strata: %s [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(e.stdin, &answer) // on error the answer is no
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

// samePlatform reports whether an image has the wanted platform; an empty one matches any.
func samePlatform(wanted, have string) bool {
	if wanted == "" || wanted == have {
		return true
	}
	p, err := image.ParsePlatform(wanted)
	return err == nil && p.String() == have
}

// openImage opens an image for import. Temporary files are in the store, which removes them if this process is killed.
func openImage(ctx context.Context, st *store.Store, src image.Source,
	o image.Options) (*image.Image, func() error, error) {
	dir, remove, err := st.TempDir()
	if err != nil {
		return nil, nil, err
	}
	o.TempDir = dir
	img, err := image.Open(ctx, src, o)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return img, func() error { return errors.Join(img.Close(), remove()) }, nil
}

// findImage finds an image in the store by the name that a user types.
func findImage(st *store.Store, ref string) (store.Image, error) {
	img, err := st.Find(ref)
	if !errors.Is(err, store.ErrNotFound) {
		return img, err
	}
	if !strings.ContainsAny(ref, ":@/") {
		if img, err := st.Find(ref + ":latest"); err == nil {
			return img, nil
		}
	}
	if src, serr := image.ParseSource("docker://" + strings.TrimPrefix(ref, "docker://")); serr == nil {
		if img, err := st.Find(src.Name); err == nil {
			return img, nil
		}
		// By digest: an image pulled by tag may have the same digest.
		if name, digest, ok := strings.Cut(src.Name, "@"); ok {
			if img, err := st.Find(digest); err == nil && img.Digest == digest && sameRepository(img.Name, name) {
				return img, nil
			}
		}
	}
	return img, fmt.Errorf("%w; strata image ls shows those there are", err)
}

// sameRepository reports whether an image's name is in a repository, with any tag or digest.
func sameRepository(name, repository string) bool {
	rest, ok := strings.CutPrefix(name, cutTag(repository))
	return ok && (rest == "" || rest[0] == ':' || rest[0] == '@')
}

// cutTag returns a name without its tag.
func cutTag(name string) string {
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		return name[:at]
	}
	return name
}
