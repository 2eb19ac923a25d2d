package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/store"
)

// isImage reports whether the arguments are one image, rather than layer directories.
func isImage(args []string) bool {
	if len(args) != 1 {
		return false
	}
	fi, err := os.Stat(args[0])
	if err != nil {
		return !filepath.IsAbs(args[0]) || strings.HasPrefix(args[0], "/") && strings.Contains(args[0], ":")
	}
	if !fi.IsDir() {
		return true
	}
	_, err = os.Stat(filepath.Join(args[0], "index.json"))
	return err == nil
}

// imageInUse is an image that is about to be mounted. Its lease protects it from garbage collection until it is
// mounted; after that the VM's ledger does.
type imageInUse struct {
	folders []string
	config  image.Config
	digest  string
	lease   *store.Lease
}

// useImage finds an image in the store, or imports it. The caller must release the lease.
func (e *env) useImage(ctx context.Context, cmd *cli.Command, ref, owner string) (use imageInUse, err error) {
	st, err := e.openStore(ctx, cmd)
	if errors.Is(err, errNoStore) {
		err = notImported(ref)
	}
	if err != nil {
		return use, err
	}
	fs, err := formats(cmd)
	if err != nil {
		return use, err
	}
	img, err := findImage(st, ref)
	wanted := cmd.String("platform")
	name := ""
	if err == nil && !slices.Contains(img.Formats, fs[0].String()) {
		ref, name = img.Source, img.Name // import it again from its source, under its name
	}
	if _, serr := os.Stat(ref); serr == nil || err != nil || !samePlatform(wanted, img.Platform) || name != "" {
		// An image file may have changed. Layers that are in the store are not converted again.
		if img, _, err = e.importImage(ctx, cmd, ref, name); err != nil {
			return use, err
		}
	}
	use.digest = img.Digest
	if use.config, err = image.ParseConfig(img.Config); err != nil {
		return use, fmt.Errorf("image %s: %w", printable(img.Name), err)
	}
	if use.lease, err = st.Lease(ctx, img, owner, ""); err != nil {
		return use, err
	}
	if use.folders, err = st.Folders(img, fs[0]); err != nil {
		return use, errors.Join(err, use.lease.Release())
	}
	return use, nil
}

// importToStore is import with one argument.
func (e *env) importToStore(ctx context.Context, cmd *cli.Command) error {
	arg := cmd.Args().First()
	if src, err := image.ParseSource(arg); err == nil && src.Kind == image.Registry {
		return usage(cmd, "give a tar and a folder, or a file with an image; for an image of a registry: strata pull %s",
			printable(arg))
	}
	if cmd.Bool("dry-run") {
		return e.importDry(cmd, arg)
	}
	_, p, err := e.importImage(ctx, cmd, arg, cmd.String("name"))
	if err != nil {
		return err
	}
	return e.printPulled(cmd, []pulled{p})
}
