package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

func statsCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "stats", Usage: "show what containers use", ArgsUsage: "[CONTAINER...]",
		Description: "All that run where none is named. The table is shown anew each second until Ctrl-C; with\n" +
			"--no-stream, or --json, once.\n\n" + examples("strata stats", "strata stats --no-stream web"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-stream", Usage: "show it once"},
		},
		Action: e.stats,
	}, {
		Name: "top", Usage: "list the processes of a container", ArgsUsage: "CONTAINER",
		Description: "With the numbers and users that they have on the machine that the container is on.\n\n" +
			examples("strata top web"),
		Action: e.top,
	}}
}

// statsEvery is the interval between two samples of a container's resource usage.
const statsEvery = time.Second

// containerUsage is a line of stats.
type containerUsage struct {
	ID    string             `json:"id"`
	Name  string             `json:"name"`
	CPU   float64            `json:"cpuPercent"` // 100 is one processor
	Usage vmm.ContainerStats `json:"usage"`
	Error string             `json:"error,omitempty"`
}

func (e *env) stats(ctx context.Context, cmd *cli.Command) error {
	cs, err := e.containers(ctx, cmd)
	if err != nil {
		return err
	}
	once := cmd.Bool("no-stream") || cmd.Bool("json")
	_, screen := terminal(e.stdout)
	last, at := map[string]vmm.ContainerStats{}, time.Now()
	for first := true; ; first = false {
		records, err := e.statsOf(cs, cmd.Args().Slice())
		if err != nil {
			return err
		}
		all := usages(ctx, cs, records)
		now := time.Now()
		for i := range all {
			u := &all[i]
			if before, ok := last[u.ID]; ok && u.Error == "" {
				u.CPU = 100 * float64(u.Usage.CPU-before.CPU) / float64(now.Sub(at))
			}
			last[u.ID] = u.Usage
			u.Usage.Processes = nil
		}
		at = now
		if !first {
			if screen && !once {
				fmt.Fprint(e.stdout, "\x1b[H\x1b[J")
			}
			if err := e.print(cmd, all, func(w io.Writer) { usageTable(w, all) }); err != nil || once {
				return err
			}
		}
		t := time.NewTimer(statsEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// statsOf returns the named containers, or all running ones.
func (e *env) statsOf(cs *strata.Containers, refs []string) (records []strata.ContainerRecord, err error) {
	for _, ref := range refs {
		r, err := cs.Find(ref)
		if err != nil {
			return nil, adviseContainer(err)
		}
		records = append(records, r)
	}
	if len(refs) > 0 {
		return records, nil
	}
	all, err := cs.List()
	for _, r := range all {
		if r.State == strata.ContainerRunning {
			records = append(records, r)
		}
	}
	return records, err
}

// usages queries the resource usage of containers concurrently.
func usages(ctx context.Context, cs *strata.Containers, records []strata.ContainerRecord) []containerUsage {
	all := make([]containerUsage, len(records))
	var asking sync.WaitGroup
	for i, r := range records {
		asking.Go(func() {
			all[i] = containerUsage{ID: r.ID, Name: r.Name}
			limited, cancel := context.WithTimeout(ctx, grace)
			defer cancel()
			s, err := statsOfOne(limited, cs, r)
			if err != nil {
				all[i].Error = err.Error()
			}
			all[i].Usage = s
		})
	}
	asking.Wait()
	return all
}

func statsOfOne(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord) (vmm.ContainerStats, error) {
	if err := needRunning(cs, r); err != nil {
		return vmm.ContainerStats{}, err
	}
	s, err := cs.Control(r.Name).Stats(ctx)
	if err != nil {
		err = fmt.Errorf("container %s: %w", r.Name, err)
	}
	return s, err
}

func usageTable(w io.Writer, all []containerUsage) {
	fmt.Fprintln(w, "CONTAINER ID\tNAME\tCPU %\tMEM USAGE / LIMIT\tMEM %\tBLOCK I/O\tPIDS")
	for _, u := range all {
		if u.Error != "" {
			row(w, "%s\t%s\t--\t-- / --\t--\t--\t--\n", shortID(u.ID), u.Name)
			continue
		}
		limit, share := "none", "--"
		if n := u.Usage.MemoryLimit; n > 0 {
			limit, share = size(bytesOf(n)), fmt.Sprintf("%.2f%%", 100*float64(u.Usage.Memory)/float64(n))
		}
		row(w, "%s\t%s\t%.2f%%\t%s / %s\t%s\t%s / %s\t%d\n", shortID(u.ID), u.Name, u.CPU, size(bytesOf(u.Usage.Memory)),
			limit, share, size(bytesOf(u.Usage.Read)), size(bytesOf(u.Usage.Written)), u.Usage.PIDs)
	}
}

// bytesOf converts a number of bytes from an untrusted guest.
func bytesOf(n uint64) int64 { return int64(min(n, 1<<62)) }

func (e *env) top(ctx context.Context, cmd *cli.Command) error {
	cs, r, err := e.oneContainer(ctx, cmd)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s, err := statsOfOne(limited, cs, r)
	if errors.Is(err, errors.ErrUnsupported) {
		err = fmt.Errorf("%w; to look from inside: strata exec %s ps", err, r.Name)
	}
	if err != nil {
		return err
	}
	list := s.Processes
	if list == nil {
		list = []vmm.ContainerProcess{}
	}
	return e.print(cmd, list, func(w io.Writer) {
		fmt.Fprintln(w, "UID\tPID\tPPID\tTIME\tCMD")
		for _, p := range list {
			t := int(p.CPU / time.Second)
			row(w, "%d\t%d\t%d\t%02d:%02d:%02d\t%s\n", p.UID, p.PID, p.Parent, t/3600, t/60%60, t%60, p.Command)
		}
	})
}
