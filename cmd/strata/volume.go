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

	"github.com/stratavm/strata"
)

func volumeCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "volume", Usage: "folders with a name, which outlive the containers that have them",
		Description: "strata run -v NAME:TARGET makes a volume that does not exist; one that is empty gets what the\n" +
			"image has at TARGET.\n\n" +
			examples("strata volume create data", "strata run -v data:/var/lib/app app:1", "strata volume rm data"),
		Commands: []*cli.Command{
			{Name: "create", Usage: "make a volume", ArgsUsage: "NAME", Action: e.volumeCreate, Flags: []cli.Flag{
				&cli.StringSliceFlag{Name: "label", Usage: "`KEY=VALUE` to be kept with it (repeat)"}}},
			{Name: "ls", Aliases: []string{"list"}, Usage: "list the volumes", Action: e.volumeList, Flags: []cli.Flag{
				&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "names only"}}},
			{Name: "inspect", Usage: "show volumes as JSON", ArgsUsage: "NAME...", Action: e.volumeInspect},
			{Name: "rm", Aliases: []string{"remove"}, Usage: "remove volumes with all that is in them",
				ArgsUsage: "NAME...", Action: e.volumeRemove},
			{Name: "prune", Usage: "remove the volumes that no container has", Action: e.volumePrune, Flags: []cli.Flag{
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also those with a name, and what they hold"},
				&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Hidden: true, Usage: "it does not ask anyway"}},
				Description: "Volumes without a name go with their container: what is left has a name, and goes with\n" +
					"--all only.\n\n" +
					examples("strata volume prune --all", "strata --dry-run volume prune --all")},
		},
	}}
}

func (e *env) volumes(cmd *cli.Command) (strata.VolumeStore, error) {
	runs, err := e.runs(cmd)
	if err != nil {
		return strata.VolumeStore{}, err
	}
	return runs.Volumes(), nil
}

func (e *env) volumeCreate(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return usage(cmd, "give the name of one volume")
	}
	name := cmd.Args().First()
	labels := map[string]string{}
	for _, kv := range cmd.StringSlice("label") {
		key, value, _ := strings.Cut(kv, "=")
		if key == "" {
			return usage(cmd, "--label %q: give KEY=VALUE", kv)
		}
		labels[key] = value
	}
	st, err := e.volumes(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "create volume %s", printable(name))
	}
	info, _, err := st.Create(ctx, name, labels)
	if errors.Is(err, strata.ErrMount) {
		return usage(cmd, "%w", err)
	}
	if err != nil {
		return err
	}
	return e.print(cmd, info, func(w io.Writer) { row(w, "%s\n", info.Name) })
}

func (e *env) volumeList(_ context.Context, cmd *cli.Command) error {
	st, err := e.volumes(cmd)
	if err != nil {
		return err
	}
	all, err := st.List()
	if all == nil {
		all = []strata.VolumeInfo{}
	}
	perr := e.print(cmd, all, func(w io.Writer) {
		if cmd.Bool("quiet") {
			for _, v := range all {
				row(w, "%s\n", v.Name)
			}
			return
		}
		fmt.Fprintln(w, "NAME\tCREATED\tUSED BY")
		for _, v := range all {
			row(w, "%s\t%s\t%s\n", v.Name, v.Created.Format(time.DateTime), strings.Join(v.UsedBy, ","))
		}
	})
	return errors.Join(err, perr)
}

func (e *env) volumeInspect(_ context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give at least one volume")
	}
	st, err := e.volumes(cmd)
	if err != nil {
		return err
	}
	list := []strata.VolumeInfo{}
	var errs []error
	for _, name := range cmd.Args().Slice() {
		info, err := st.Inspect(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, info)
	}
	return errors.Join(append(errs, writeJSON(e.stdout, list, "  "))...)
}

func (e *env) volumeRemove(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return usage(cmd, "give at least one volume")
	}
	st, err := e.volumes(cmd)
	if err != nil {
		return err
	}
	removed := []string{}
	var errs []error
	for _, name := range cmd.Args().Slice() {
		if cmd.Bool("dry-run") {
			_, err := st.Inspect(name)
			if err == nil {
				err = e.would(cmd, "remove volume %s", printable(name))
			}
			errs = append(errs, err)
			continue
		}
		if err := st.Remove(ctx, name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
	}
	if !cmd.Bool("dry-run") {
		errs = append(errs, e.printNames(cmd, removed))
	}
	return errors.Join(errs...)
}

func (e *env) volumePrune(ctx context.Context, cmd *cli.Command) error {
	st, err := e.volumes(cmd)
	if err != nil {
		return err
	}
	if !cmd.Bool("all") {
		e.say("strata: volumes without a name went with their containers; to remove those with a name: " +
			"strata volume prune --all")
		return e.printNames(cmd, nil)
	}
	if cmd.Bool("dry-run") {
		all, err := st.List()
		for _, v := range slices.DeleteFunc(all, func(v strata.VolumeInfo) bool { return len(v.UsedBy) > 0 }) {
			err = errors.Join(err, e.would(cmd, "remove volume %s", printable(v.Name)))
		}
		return err
	}
	names, err := st.Prune(ctx)
	return errors.Join(err, e.printNames(cmd, names))
}

// printNames prints one name per line.
func (e *env) printNames(cmd *cli.Command, names []string) error {
	if names == nil {
		names = []string{}
	}
	return e.print(cmd, names, func(w io.Writer) {
		for _, n := range names {
			row(w, "%s\n", n)
		}
	})
}
