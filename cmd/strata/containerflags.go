package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/userns"
)

// containerFlags returns the flags that configure a container, named as docker's.
func containerFlags() []cli.Flag {
	return slices.Concat(nameFlags(), networkFlags(), volumeFlags(), []cli.Flag{
		&cli.StringFlag{Name: "entrypoint", Usage: "`PROGRAM` instead of the image's entrypoint; empty for none"},
		&cli.BoolFlag{Name: "init",
			Usage: "begin the container with a program that collects those that lose their parents and passes signals on"},
		&cli.StringFlag{Name: "hostname", Usage: "of the container (default: its id)"},
		&cli.BoolFlag{Name: "read-only", Usage: "the program cannot write to the root"},
		&cli.StringFlag{Name: "shm-size", Usage: "`SIZE` of /dev/shm (default: 64m)"},
		&cli.StringFlag{Name: "memory", Aliases: []string{"m"},
			Usage: "`SIZE` that the container may use, such as 512m"},
		&cli.StringFlag{Name: "memory-swap",
			Usage: "`SIZE` of memory and swap together; -1: as much swap as there is"},
		&cli.FloatFlag{Name: "cpus", HideDefault: true,
			Usage: "processors that the container may use, such as 0.5"},
		&cli.Uint64Flag{Name: "cpu-shares", Aliases: []string{"c"}, HideDefault: true,
			Usage: "weight beside other containers, 2 to 262144"},
		&cli.Int64Flag{Name: "pids-limit", HideDefault: true,
			Usage: "processes and threads that the container may have; -1: no limit"},
		&cli.StringSliceFlag{Name: "ulimit",
			Usage: "`NAME=SOFT[:HARD]`, such as nofile=1024:4096; -1: no limit (repeat)"},
		&cli.IntFlag{Name: "oom-score-adj", HideDefault: true,
			Usage: "-1000 to 1000: who is killed first when memory is short"},
		&cli.StringSliceFlag{Name: "cap-add", Usage: "a `CAPABILITY` more, such as NET_ADMIN, or ALL (repeat)"},
		&cli.StringSliceFlag{Name: "cap-drop", Usage: "a `CAPABILITY` less, or ALL (repeat)"},
		&cli.StringSliceFlag{Name: "security-opt",
			Usage: "`OPTION`: no-new-privileges, seccomp=FILE or seccomp=unconfined (repeat)"},
		&cli.StringSliceFlag{Name: "sysctl", Usage: "`NAME=VALUE` of the container's network or IPC (repeat)"},
		&cli.BoolFlag{Name: "privileged",
			Usage: "every capability and device, nothing hidden: in a VM, whose root it is then"},
	})
}

// onlyDocument are the flags that only have an effect through the container's OCI spec.
var onlyDocument = []string{"hostname", "tmpfs", "shm-size", "memory", "memory-swap", "cpus", "cpu-shares",
	"pids-limit",
	"ulimit", "oom-score-adj", "cap-add", "cap-drop", "security-opt", "sysctl", "volume", "mount", "privileged",
	"init", "add-host", "dns", "dns-search", "dns-option", "group-add", "device", "spec"}

// setFlags returns those flags of names that are set on the command line.
func setFlags(cmd *cli.Command, names []string) (set []string) {
	for _, name := range names {
		if cmd.IsSet(name) {
			set = append(set, "--"+name)
		}
	}
	return set
}

// specOptions reads the flags of containerFlags and processFlags. The command after the image is left to the caller.
func (e *env) specOptions(cmd *cli.Command) (o strata.SpecOptions, err error) {
	o = strata.SpecOptions{WorkDir: cmd.String("workdir"), User: cmd.String("user"), Hostname: cmd.String("hostname"),
		CapAdd: cmd.StringSlice("cap-add"), CapDrop: cmd.StringSlice("cap-drop"), Privileged: cmd.Bool("privileged"),
		ReadonlyRoot: cmd.Bool("read-only"), Init: cmd.Bool("init"), HostNetwork: cmd.String("network") == "host",
		UserNamespace: inProcess(cmd) && userns.Inside(),
		// Profiles are evaluated on Linux hosts only.
		SeccompUnconfined: runtime.GOOS != "linux"}
	if o.Env, err = e.environment(cmd); err != nil {
		return o, err
	}
	if cmd.IsSet("entrypoint") {
		o.Entrypoint = []string{}
		if p := cmd.String("entrypoint"); p != "" {
			o.Entrypoint = []string{p}
		}
	}
	if cmd.IsSet("oom-score-adj") {
		adj := cmd.Int("oom-score-adj")
		o.OOMScoreAdj = &adj
	}
	if _, _, err := networkKind(cmd); err != nil {
		return o, err
	}
	if err := limitOptions(cmd, &o); err != nil {
		return o, err
	}
	if err := sizeFlag(cmd, "shm-size", &o.ShmSize); err != nil {
		return o, err
	}
	if err := ulimits(cmd, &o); err != nil {
		return o, err
	}
	if err := securityOptions(cmd, &o); err != nil {
		return o, err
	}
	if err := sysctls(cmd, &o); err != nil {
		return o, err
	}
	if err := nameOptions(cmd, &o); err != nil {
		return o, err
	}
	return o, nil
}

// limitOptions reads the flags of limits.
func limitOptions(cmd *cli.Command, o *strata.SpecOptions) error {
	o.CPUs, o.CPUShares, o.PidsLimit = cmd.Float("cpus"), cmd.Uint64("cpu-shares"), cmd.Int64("pids-limit")
	if cmd.IsSet("cpus") && o.CPUs <= 0 || math.IsNaN(o.CPUs) {
		return usage(cmd, "--cpus %v: give more than 0, such as 0.5", o.CPUs)
	}
	return errors.Join(sizeFlag(cmd, "memory", &o.Memory), sizeFlag(cmd, "memory-swap", &o.MemorySwap))
}

func sizeFlag(cmd *cli.Command, flag string, to *int64) (err error) {
	value := cmd.String(flag)
	switch {
	case !cmd.IsSet(flag):
	case flag == "memory-swap" && value == "-1":
		*to = -1
	default:
		if *to, err = parseSize(value); err != nil {
			return usage(cmd, "--%s: %w", flag, err)
		}
	}
	return nil
}

// ulimits reads --ulimit.
func ulimits(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("ulimit") {
		name, limits, ok := strings.Cut(value, "=")
		soft, hard, two := strings.Cut(limits, ":")
		if !two {
			hard = soft
		}
		l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name)}
		var serr, herr error
		l.Soft, serr = parseLimit(soft)
		l.Hard, herr = parseLimit(hard)
		if !ok || name == "" || serr != nil || herr != nil {
			return usage(cmd, "--ulimit %q: give NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:4096", value)
		}
		o.Rlimits = append(o.Rlimits, l)
	}
	return nil
}

func parseLimit(s string) (uint64, error) {
	if s == "-1" || s == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// securityOptions reads --security-opt.
func securityOptions(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("security-opt") {
		key, v, set := strings.Cut(strings.Replace(value, ":", "=", 1), "=")
		switch {
		case key == "no-new-privileges":
			on, err := strconv.ParseBool(cmp.Or(v, "true"))
			if err != nil {
				return usage(cmd, "--security-opt %q: use no-new-privileges, or no-new-privileges=false", value)
			}
			o.NoNewPrivileges = on
		case key == "seccomp" && set && v == "unconfined":
			o.Seccomp, o.SeccompUnconfined = nil, true
		case key == "seccomp" && set && v != "" && v != "builtin":
			profile, err := readSmall(v, ocispec.MaxSeccompSize)
			if err != nil {
				return fmt.Errorf("--security-opt seccomp: %w", err)
			}
			if _, err := ocispec.ParseSeccomp(profile, ocispec.DefaultCapabilities()); err != nil {
				return fmt.Errorf("--security-opt seccomp=%s: %w", printable(v), err)
			}
			o.Seccomp, o.SeccompUnconfined = profile, false
		case key == "seccomp" && v == "builtin":
		case key == "apparmor", key == "label", key == "systempaths", key == "writable-cgroups":
			return usage(cmd, "--security-opt %s: not supported: use no-new-privileges or seccomp", key)
		default:
			return usage(cmd, "--security-opt %q: use no-new-privileges, seccomp=FILE or seccomp=unconfined", value)
		}
	}
	return nil
}

// sysctls reads --sysctl.
func sysctls(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("sysctl") {
		name, v, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return usage(cmd, "--sysctl %q: give NAME=VALUE", value)
		}
		if o.Sysctls == nil {
			o.Sysctls = map[string]string{}
		}
		o.Sysctls[name] = v
	}
	return nil
}

// containerSpec returns the OCI spec of a container of an image with configuration c.
func (e *env) containerSpec(cmd *cli.Command, c image.Config, o strata.SpecOptions) (*specs.Spec, error) {
	if o.Privileged && inProcess(cmd) {
		return nil, fmt.Errorf("--privileged: not supported with --isolation=process, where the program would be root "+
			"of this system: %w", errors.ErrUnsupported)
	}
	return strata.ContainerSpec(c, o)
}

// readSpec reads the OCI spec of --spec.
func readSpec(path string) (*specs.Spec, error) {
	b, err := readSmall(path, 5<<20) // ParseSpec takes less, and says so
	if err != nil {
		return nil, fmt.Errorf("--spec: %w", err)
	}
	s, err := strata.ParseSpec(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("--spec %s: %w", printable(path), err)
	}
	return s, nil
}
