package main

import (
	"strings"

	"github.com/urfave/cli/v3"
)

// notYet and notHere are the answers for unsupported flags of docker run.
const (
	notYet  = "not supported yet"
	notHere = "not supported"
)

// dockerFlags are the flags of docker run that strata run does not have, with what to use instead.
var dockerFlags = map[string]string{
	"annotation": "use --spec with a document", "a": "output is attached; for input: -i, for neither: -d",
	"attach": "output is attached; for input: -i, for neither: -d", "blkio-weight": "use --spec with a document",
	"blkio-weight-device": notHere, "cgroup-parent": notHere + ": each container has a control group of its own",
	"cgroupns":  notHere + ": each container has a namespace of its own",
	"cidfile":   "run --detach prints the id; or give a --name",
	"cpu-count": "use --cpus", "cpu-percent": "use --cpus", "cpu-period": "use --cpus", "cpu-quota": "use --cpus",
	"cpu-rt-period": notHere, "cpu-rt-runtime": notHere, "cpuset-cpus": "use --spec with a document",
	"cpuset-mems":        "use --spec with a document",
	"detach-keys":        "it is a flag of strata attach and strata start",
	"device-cgroup-rule": "use --spec with a document", "device-read-bps": "use --spec with a document",
	"device-read-iops": "use --spec with a document", "device-write-bps": "use --spec with a document",
	"device-write-iops": "use --spec with a document", "disable-content-trust": notHere, "domainname": notHere,
	"expose": notYet, "gpus": notHere, "health-cmd": notHere,
	"health-interval": notHere, "health-retries": notHere, "health-start-interval": notHere,
	"health-start-period": notHere, "health-timeout": notHere,
	"ip": notYet, "ip6": notYet,
	"ipc": notHere + ": each container has a namespace of its own", "kernel-memory": notHere,
	"l":     "use --spec with a document",
	"label": "use --spec with a document", "label-file": "use --spec with a document", "link": notHere,
	"link-local-ip": notYet, "log-driver": notHere + ": strata logs shows what a detached container wrote",
	"log-opt": notHere + ": the last 8 to 16 MiB are kept", "mac-address": notYet,
	"memory-reservation": "use --spec with a document", "memory-swappiness": notHere, "mount": notYet,
	"network-alias": notYet, "net-alias": notYet, "no-healthcheck": "health checks are not run",
	"oom-kill-disable": notHere,
	"P":                notYet, "pid": notHere + ": each container has a namespace of its own",
	"publish-all": notYet, "pull": "an image that is not there is pulled; for a newer one: strata pull", "q": "use --json",
	"quiet": "use --json", "restart": notHere + ": nothing starts a container again by itself; to do so: strata start",
	"runtime": notHere + ": crun runs containers", "sig-proxy": "signals are passed on",
	"stop-timeout":   "a program has 10 seconds to end; for more: strata stop --time",
	"storage-opt":    "use --scratch-size",
	"use-api-socket": notHere, "userns": notHere, "uts": notHere + ": each container has a namespace of its own",
	"volume-driver": notHere, "volumes-from": notYet,
}

// dockerFlagsOf are the same for other commands.
var dockerFlagsOf = map[string]map[string]string{
	"exec":  {"privileged": "a program has the rights of its container", "detach-keys": "it is a flag of strata attach and strata start"},
	"logs":  {"details": notHere},
	"ps":    {"s": "use strata stats", "size": "use strata stats"},
	"pull":  {"a": "name each tag", "all-tags": "name each tag", "q": "use --json", "quiet": "use --json"},
	"rm":    {"l": notHere, "link": notHere},
	"stats": {"a": "what does not run uses nothing", "all": "what does not run uses nothing", "format": "use --json"},
}

// dockerUsage turns the error about an unknown flag that docker has into one with a remedy.
func dockerUsage(cmd *cli.Command, err error) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return usage(cmd, "%w", err)
	}
	flags := dockerFlags
	if cmd.Name != "run" && cmd.Name != "spec" {
		flags = dockerFlagsOf[cmd.Name]
	}
	if flags[name] == "" { // a group such as -dit
		i := strings.IndexFunc(name, func(letter rune) bool { return flags[string(letter)] != "" })
		if i < 0 || len(name) > 4 {
			return usage(cmd, "%w", err)
		}
		name = name[i : i+1]
	}
	dash := "--"
	if len(name) == 1 {
		dash = "-"
	}
	return usage(cmd, "%s%s: %s", dash, name, flags[name])
}
