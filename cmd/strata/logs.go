package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
)

func logCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "logs", Usage: "print what a container has written", ArgsUsage: "CONTAINER",
		Description: "Of a container that strata run --detach started. The last 8 to 16 MiB are kept until it is\n" +
			"removed. What it wrote to standard error goes to standard error.\n\n" +
			examples("strata logs web", "strata logs --follow --tail 10 web", "strata logs --since 10m --timestamps web"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the container ends"},
			&cli.StringFlag{Name: "tail", Aliases: []string{"n"}, Value: "all", Usage: "`LINES` from the end"},
			&cli.StringFlag{Name: "since",
				Usage: "only after `TIME`: 2026-01-02T15:04:05Z, seconds since 1970, or 10m for ten minutes ago"},
			&cli.StringFlag{Name: "until", Usage: "only before `TIME`"},
			&cli.BoolFlag{Name: "timestamps", Aliases: []string{"t"}, Usage: "show when each line was written"},
		},
		Action: e.logs,
	}}
}

func (e *env) logs(ctx context.Context, cmd *cli.Command) error {
	o := strata.ContainerLogOptions{Tail: -1, Follow: cmd.Bool("follow")}
	if tail := cmd.String("tail"); tail != "all" {
		n, err := strconv.ParseInt(tail, 10, 32)
		if err != nil {
			return usage(cmd, "--tail %q: give a number of lines, or all", tail)
		}
		o.Tail = max(int(n), -1)
	}
	now := time.Now()
	for flag, to := range map[string]*time.Time{"since": &o.Since, "until": &o.Until} {
		if s := cmd.String(flag); s != "" {
			t, err := parseTime(s, now)
			if err != nil {
				return usage(cmd, "--%s: %w", flag, err)
			}
			*to = t
		}
	}
	cs, rec, err := e.oneContainer(ctx, cmd)
	if err != nil {
		return err
	}
	if rec.Foreground {
		return fmt.Errorf("container %s runs in the foreground: its output is where it was started, and is not kept",
			rec.Name)
	}
	return cs.Logs(ctx, rec.Name, o, func(l strata.ContainerLogLine) error {
		return e.logLine(cmd, l)
	})
}

// logLine prints a line of a log, as it is.
func (e *env) logLine(cmd *cli.Command, l strata.ContainerLogLine) error {
	if cmd.Bool("json") {
		b, err := json.Marshal(l)
		if err == nil {
			_, err = e.stdout.Write(append(b, '\n'))
		}
		return err
	}
	text := l.Log
	if cmd.Bool("timestamps") {
		text = l.Time.Format("2006-01-02T15:04:05.000000000Z07:00") + " " + text
	}
	to := e.stdout
	if l.Stream == "stderr" {
		to = e.stderr
	}
	_, err := io.WriteString(to, text)
	return err
}

// parseTime parses a time: RFC 3339, also without time zone or time of day; Unix seconds; or a duration before now.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if sec, frac, _ := strings.Cut(s, "."); len(frac) <= 9 {
		n, err := strconv.ParseInt(sec, 10, 64)
		ns, ferr := strconv.ParseUint((frac + "000000000")[:9], 10, 64)
		if err == nil && ferr == nil {
			return time.Unix(n, int64(ns)), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: use 2026-01-02T15:04:05Z, seconds since 1970, "+
		"or 10m for ten minutes ago", s)
}
