package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layerdir"
)

func importCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "import", Usage: "bring an image into the store, or make a layer folder of a tar", ArgsUsage: "IMAGE | TAR DIR",
		Description: "With one argument it is as strata pull: a file or folder with an image, or the tar of a root.\n\n" +
			"With two, TAR is a layer tar with OCI whiteouts (.wh.NAME), plain, gzip or zstd; - is standard input.\n" +
			"DIR is made; the layer file in it appears when it is complete, or not at all.\n\n" +
			examples("strata import --name debian debian.tar",
				"strata import rootfs.tar /layers/base",
				"mmdebstrap --variant=minbase bookworm - | strata import - /layers/debian",
				"strata import --format vhd --parent /layers/base change.tar.gz /layers/change"),
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "what the image is called in the store (default: its own name, or that of " +
				"the file)"},
			&cli.StringSliceFlag{Name: "parent", TakesFile: true,
				Usage: "the layer `DIR` below this one, then the next (repeat); written to layerchain.json"},
		}, imageFlags()...),
		Action: e.importTar,
	}}
}

// imported is what import prints.
type imported struct {
	Layer  string `json:"layer"` // folder
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	Millis int64  `json:"milliseconds"`
}

func (e *env) importTar(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() == 1 {
		return e.importToStore(ctx, cmd)
	}
	if cmd.Args().Len() != 2 {
		return usage(cmd, "give an image, or a tar and a folder")
	}
	dirs, err := absolute(cmd, "layer folder", cmd.Args().Get(1))
	if err != nil {
		return err
	}
	parents, err := absolute(cmd, "parent layer", cmd.StringSlice("parent")...)
	if err != nil {
		return err
	}
	for _, p := range parents {
		if fi, err := os.Stat(p); err != nil || !fi.IsDir() {
			return fmt.Errorf("parent layer %s: there is no such folder; import it first", printable(p))
		}
	}
	if err := checkFree(dirs[0]); err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "make a layer of %s in %s", printable(cmd.Args().First()), printable(dirs[0]))
	}
	start := time.Now()
	res, err := e.convert(ctx, cmd, cmd.Args().First(), dirs[0])
	if err != nil {
		return err
	}
	if len(parents) > 0 {
		if err := layerdir.WriteChain(dirs[0], parents); err != nil {
			return err
		}
	}
	out := imported{Layer: dirs[0], File: res.Path, Bytes: res.Bytes, Millis: time.Since(start).Milliseconds()}
	return e.print(cmd, out, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s in %s\n", printable(res.Path), size(res.Bytes), time.Since(start).Round(time.Millisecond))
	})
}

// checkFree returns an error if a directory holds a layer already: a VM may have mounted that, and with several formats
// it depends on the VM which one is mounted.
func checkFree(dir string) error {
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		return fmt.Errorf("import: %s is a file; give a folder, which is made for the layer", printable(dir))
	}
	for _, f := range []layerdir.Format{layerdir.EROFS, layerdir.VHD, layerdir.Tree} {
		if exists(filepath.Join(dir, f.FileName())) {
			return fmt.Errorf("import: %s holds %s already; remove it first, or choose another folder", printable(dir),
				f.FileName())
		}
	}
	return nil
}

// convert converts the tar called name to a layer in directory dir.
func (e *env) convert(ctx context.Context, cmd *cli.Command, name, dir string) (res layerdir.Result, err error) {
	fs, err := formats(cmd)
	if err != nil {
		return res, err
	}
	if len(fs) != 1 {
		return res, usage(cmd, "--format: a layer folder has one format")
	}
	limit, err := maxLayerSize(cmd)
	if err != nil {
		return res, err
	}
	in, total := e.stdin, int64(0)
	if name != "-" {
		f, err := openInput(ctx, name)
		if err != nil {
			return res, fmt.Errorf("import: %w", err)
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return res, fmt.Errorf("import: %w", err)
		}
		if fi.IsDir() {
			return res, fmt.Errorf("import %s: it is a folder; give a tar, such as one of: tar -cf rootfs.tar -C %s ./", name,
				name)
		}
		in, total = f, fi.Size()
	} else if _, tty := terminal(e.stdin); tty {
		return res, errors.New("import: standard input is a terminal; pipe a tar into it")
	}
	waits := interruptible(ctx, in)
	defer waits.Close()
	// Progress is measured before decompression, where the total is known.
	p := newProgress(e.stderr, name, total, cmd.Bool("json"))
	defer p.finish()
	r := bufio.NewReaderSize(&countingReader{r: waits, tell: p.set}, 1<<20)
	if _, err := r.Peek(1); errors.Is(err, io.EOF) {
		return res, fmt.Errorf("import %s: it is empty", name)
	}
	tar, err := image.Decompress(r)
	if err != nil {
		return res, fmt.Errorf("import %s: %w", name, err)
	}
	defer tar.Close()
	res, err = layerdir.Convert(ctx, layerdir.Options{Format: fs[0].File, Verity: fs[0].Verity, Tar: tar, Dir: dir,
		MaxBytes: limit, Share: shareLayer()})
	if err != nil {
		return res, fmt.Errorf("import %s: %w", name, err)
	}
	return res, nil
}

type countingReader struct {
	r    io.Reader
	n    int64
	tell func(int64)
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}
