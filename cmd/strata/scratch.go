package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/span"
)

func scratchCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "scratch", Usage: "make writable disks",
		Commands: []*cli.Command{{
			Name: "create", Usage: "make a scratch folder with an empty disk", ArgsUsage: "DIR",
			Description: "The disk (sandbox.vhdx) grows with what is written to it, up to --size.\n" +
				"Made on Windows it is formatted by the guest that mounts it first. The scratch of a Windows container is\n" +
				"another disk, which this command does not make.\n\n" +
				examples("strata scratch create /scratch/web", "strata scratch create --size 5G /scratch/db"),
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "size", Value: defaultScratchSize, Usage: "of the disk, such as 512M or 20G"},
			},
			Action: e.scratchCreate,
		}},
	}}
}

// defaultScratchSize is layerdir.DefaultScratchSize.
const defaultScratchSize = "20G"

// created is the output of scratch create.
type created struct {
	Scratch string `json:"scratch"` // folder
	File    string `json:"file"`
	Bytes   int64  `json:"bytes"`
}

func (e *env) scratchCreate(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return usage(cmd, "give one folder")
	}
	n, err := parseSize(cmd.String("size"))
	if err != nil {
		return usage(cmd, "--size: %w", err)
	}
	dirs, err := absolute(cmd, "scratch folder", cmd.Args().First())
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "make a scratch of up to %s in %s", size(n), printable(dirs[0]))
	}
	file, err := e.makeScratch(ctx, cmd, dirs[0], n)
	if err != nil {
		return err
	}
	return e.print(cmd, created{dirs[0], file, n}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: up to %s\n", printable(file), size(n))
	})
}

// makeScratch clones a scratch from the template of the store.
func (e *env) makeScratch(ctx context.Context, cmd *cli.Command, dir string, bytes int64) (file string, err error) {
	st, err := e.openStore(ctx, cmd)
	if err != nil {
		return "", err
	}
	err = span.Do(ctx, "strata.scratch", func(ctx context.Context) (err error) {
		file, err = st.Scratch(ctx, dir, bytes)
		return err
	})
	return file, err
}

// parseSize parses a size in bytes with an optional binary suffix: "512M", "20G", "1048576".
func parseSize(s string) (int64, error) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMGTkmgt"); i >= 0 {
		suffix := strings.TrimSuffix(strings.TrimSuffix(s[i+1:], "B"), "i")
		if suffix != "" {
			return 0, fmt.Errorf("%q is no size; use a number with K, M, G or T", s)
		}
		digits = s[:i]
		shift = 10 * (1 + strings.IndexByte("KMGT", s[i]&^0x20))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is no size; use a number with K, M, G or T", s)
	}
	return n << shift, nil
}
