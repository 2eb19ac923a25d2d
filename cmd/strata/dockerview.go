package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
)

// psLine has the fields of ps for templates, with docker's names.
type psLine struct {
	ID, Names, Image, Command, CreatedAt, RunningFor, Status, State, Ports string
}

func psLines(cmd *cli.Command, all []listedContainer, now time.Time) (lines []psLine) {
	for _, c := range all {
		id := shortID(c.ID)
		if cmd.Bool("no-trunc") {
			id = c.ID
		}
		lines = append(lines, psLine{id, c.Name, c.Image, fmt.Sprintf("%q", strings.Join(c.Command, " ")),
			c.Created.Format("2006-01-02 15:04:05 -0700 MST"), ago(c.Created, now), c.Status, string(c.State),
			portList(c.Ports)})
	}
	return lines
}

// containerView has the fields of inspect for templates: docker's most common names, such as Id, and the whole record.
type containerView struct {
	ID, Id, Name, Image, Digest string
	Created                     time.Time
	State                       struct {
		Status                     strata.ContainerState
		Running, Paused, OOMKilled bool
		ExitCode                   int
		Error                      string
		StartedAt, FinishedAt      time.Time
	}
	Config struct {
		Image, User, WorkingDir, Hostname string
		Cmd, Env                          []string
		Tty, OpenStdin                    bool
	}
	Record strata.ContainerRecord
}

func viewOf(r strata.ContainerRecord) (v containerView) {
	v.ID, v.Id, v.Name, v.Image, v.Digest, v.Created, v.Record = r.ID, r.ID, r.Name, r.Image, r.Digest, r.Created, r
	s, c := &v.State, &v.Config
	s.Status, s.Running, s.OOMKilled = r.Status(), r.State == strata.ContainerRunning, r.OOMKilled
	s.Paused = r.Status() == strata.ContainerPaused
	s.ExitCode, s.Error, s.StartedAt, s.FinishedAt = r.ExitCode, r.Error, r.Started, r.Finished
	c.Image, c.User, c.WorkingDir, c.Hostname = r.Image, r.Process.User, r.Process.Dir, r.Process.Hostname
	c.Cmd, c.Env, c.Tty, c.OpenStdin = r.Process.Args, r.Process.Env, r.Process.Terminal, r.OpenStdin
	return v
}

// psFilter reads --filter KEY=VALUE. A container must match one of the values of each key.
func psFilter(cmd *cli.Command) (func(strata.ContainerRecord) bool, error) {
	wanted := map[string][]string{}
	for _, f := range cmd.StringSlice("filter") {
		key, value, ok := strings.Cut(f, "=")
		switch key {
		case "name", "id", "status", "ancestor":
		default:
			ok = false
		}
		if !ok {
			return nil, usage(cmd, "--filter %q: use name=, id=, status= or ancestor=", f)
		}
		wanted[key] = append(wanted[key], value)
	}
	return func(r strata.ContainerRecord) bool {
		for key, values := range wanted {
			met := false
			for _, v := range values {
				switch key {
				case "name":
					met = met || strings.Contains(r.Name, v)
				case "id":
					met = met || strings.HasPrefix(r.ID, v)
				case "status":
					met = met || string(r.Status()) == v
				case "ancestor":
					met = met || r.Image == v || r.Image == v+":latest" || v != "" && strings.HasPrefix(r.Digest, v)
				}
			}
			if !met {
				return false
			}
		}
		return true
	}, nil
}

// filtersState reports whether ps has a filter for status.
func filtersState(cmd *cli.Command) bool {
	return slices.ContainsFunc(cmd.StringSlice("filter"), func(f string) bool { return strings.HasPrefix(f, "status=") })
}

// imageMatches reports whether an image matches NAME of "images NAME": a name or pattern, with or without registry and
// leading path components; without a tag it matches all tags.
func imageMatches(wanted, name string) bool {
	short := strings.TrimPrefix(name, "docker.io/")
	for _, n := range []string{name, short, strings.TrimPrefix(short, "library/")} {
		have := cutTag(n)
		if cutTag(wanted) != wanted {
			have += ":" + cmp.Or(strings.TrimPrefix(strings.TrimPrefix(n, have), ":"), "latest")
		}
		if ok, err := path.Match(wanted, have); ok && err == nil {
			return true
		}
	}
	return false
}

// dockerCommands are the commands of docker that strata does not have, with what to use instead.
var dockerCommands = map[string]string{
	"create": "strata run -d starts a container; a VM and a scratch by themselves: strata vm start, strata scratch create",
	"build":  "images are made by buildah, docker or others, and read from their files: strata pull oci:DIR",
	"commit": "what a container wrote is copied out by strata cp", "diff": notHere, "events": notHere,
	"export": "strata cp NAME:/ - writes a tar", "history": "strata image inspect shows an image's layers",
	"info": "strata doctor", "load": "strata pull FILE", "login": "logins of docker, podman and skopeo are used",
	"logout": "logins of docker, podman and skopeo are used", "network": "strata run --network user, none or host",
	"port": "strata ps shows ports", "push": notHere, "rename": notHere,
	"save": notHere + ": images are kept as layers", "search": notHere,
	"system":  "strata container prune, strata image prune, strata volume prune; strata store",
	"version": "strata --version", "compose": notHere,
}

// missingCommands returns hidden commands for dockerCommands, which accept any flags and print what to use instead.
func missingCommands(*env) (list []*cli.Command) {
	for name, instead := range dockerCommands {
		list = append(list, &cli.Command{Name: name, Hidden: true, SkipFlagParsing: true,
			Usage: "not there: " + instead, ArgsUsage: "...",
			Action: func(_ context.Context, cmd *cli.Command) error {
				return usage(cmd.Root(), "there is no command %q: %s", name, instead)
			}})
	}
	return list
}

// ofContainers are the commands that docker also has as "container COMMAND".
var ofContainers = []string{"attach", "cp", "exec", "inspect", "kill", "logs", "pause", "ps", "restart", "rm", "run",
	"start", "stats", "stop", "top", "unpause", "update", "wait"}

// withoutGroup removes "container" before such a command.
func withoutGroup(args []string) []string {
	for i := 1; i < len(args)-1; i++ {
		switch word, name := args[i], args[i+1]; {
		case slices.Contains([]string{"--state-dir", "-state-dir", "--trace", "-trace"}, word):
			i++
		case strings.HasPrefix(word, "-"):
		case word != "container":
			return args
		case name == "ls" || name == "list":
			return slices.Concat(args[:i], []string{"ps"}, args[i+2:])
		case slices.Contains(ofContainers, name) || dockerCommands[name] != "":
			return slices.Concat(args[:i], args[i+1:])
		}
	}
	return args
}
