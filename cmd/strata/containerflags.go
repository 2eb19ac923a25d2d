package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
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

// containerFlags are the flags that say how a container differs from the defaults, as docker calls them.
func containerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "entrypoint", Usage: "`PROGRAM` instead of the image's entrypoint; empty for none"},
		&cli.StringFlag{Name: "hostname", Usage: "of the container (default: its id)"},
		&cli.BoolFlag{Name: "read-only", Usage: "the root cannot be written, and there is no scratch"},
		&cli.StringSliceFlag{Name: "tmpfs",
			Usage: "`DIR[:OPTIONS]`: a file system in memory, such as /run:size=64m,mode=755"},
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
		&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Local: true,
			Usage: "`DIR:TARGET[:ro]`: a folder or file of this host in the container, with --isolation=process (repeat)"},
		&cli.BoolFlag{Name: "privileged",
			Usage: "every capability and device, nothing hidden: for strata spec, not supported in a run yet"},
		&cli.StringFlag{Name: "network", Aliases: []string{"net"}, Value: "none",
			Usage: "none: a network of its own, without a way out; host: that of the machine"},
	}
}

// onlyDocument are the flags that nothing but the container's document carries.
var onlyDocument = []string{"hostname", "tmpfs", "shm-size", "memory", "memory-swap", "cpus", "cpu-shares", "pids-limit",
	"ulimit", "oom-score-adj", "cap-add", "cap-drop", "security-opt", "sysctl", "volume", "privileged", "network", "spec"}

// setFlags are those of names that the command line sets.
func setFlags(cmd *cli.Command, names []string) (set []string) {
	for _, name := range names {
		if cmd.IsSet(name) {
			set = append(set, "--"+name)
		}
	}
	return set
}

// specOptions reads the flags of containerFlags and the process flags. What follows the image is left to the caller.
func (e *env) specOptions(cmd *cli.Command) (o strata.SpecOptions, err error) {
	o = strata.SpecOptions{WorkDir: cmd.String("workdir"), User: cmd.String("user"), Hostname: cmd.String("hostname"),
		CapAdd: cmd.StringSlice("cap-add"), CapDrop: cmd.StringSlice("cap-drop"), Privileged: cmd.Bool("privileged"),
		ReadonlyRoot: cmd.Bool("read-only"), CPUs: cmd.Float("cpus"), CPUShares: cmd.Uint64("cpu-shares"),
		PidsLimit: cmd.Int64("pids-limit"), HostNetwork: cmd.String("network") == "host",
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
	if n := cmd.String("network"); n != "none" && n != "host" {
		return o, usage(cmd, "--network %q: use none or host; other networks are not supported yet", n)
	}
	if cmd.IsSet("cpus") && o.CPUs <= 0 || math.IsNaN(o.CPUs) {
		return o, usage(cmd, "--cpus %v: give more than 0, such as 0.5", o.CPUs)
	}
	for _, size := range []struct {
		flag string
		to   *int64
	}{{"memory", &o.Memory}, {"memory-swap", &o.MemorySwap}, {"shm-size", &o.ShmSize}} {
		if err := sizeFlag(cmd, size.flag, size.to); err != nil {
			return o, err
		}
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
	if err := temporary(cmd, &o); err != nil {
		return o, err
	}
	return o, volumes(cmd, &o)
}

// volumes reads --volume.
func volumes(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("volume") {
		parts := strings.Split(value, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !strings.HasPrefix(parts[1], "/") {
			return usage(cmd, "--volume %q: give DIR:TARGET or DIR:TARGET:ro, with an absolute TARGET", value)
		}
		if !strings.ContainsAny(parts[0], "/.") {
			return usage(cmd, "--volume %q: volumes by name are not supported yet; give a folder, such as ./%s",
				value, parts[0])
		}
		options := []string{"rbind", "rprivate"}
		if len(parts) == 3 {
			switch parts[2] {
			case "ro":
				options = append(options, "ro", "rro")
			case "rw", "":
			default:
				return usage(cmd, "--volume %q: option %q is not supported; use ro or rw", value, parts[2])
			}
		}
		from, err := filepath.Abs(parts[0])
		if err == nil {
			_, err = os.Stat(from)
		}
		if err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
		o.Mounts = append(o.Mounts, specs.Mount{Destination: parts[1], Type: "bind", Source: from, Options: options})
	}
	return nil
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

// readSmall reads a file of at most so many bytes.
func readSmall(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return b, err
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

// temporary reads --tmpfs.
func temporary(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("tmpfs") {
		to, given, _ := strings.Cut(value, ":")
		if !strings.HasPrefix(to, "/") {
			return usage(cmd, "--tmpfs %q: give an absolute path, and perhaps \":\" and options", value)
		}
		options := []string{"nosuid", "nodev", "noexec"}
		for _, opt := range strings.Split(given, ",") {
			switch key, size, _ := strings.Cut(opt, "="); {
			case opt == "":
			case key == "size":
				n, err := parseSize(size)
				if err != nil {
					return usage(cmd, "--tmpfs %q: %w", value, err)
				}
				options = append(options, "size="+strconv.FormatInt(n, 10))
			case slices.Contains([]string{"exec", "suid", "dev"}, opt):
				options = slices.DeleteFunc(options, func(o string) bool { return o == "no"+opt })
			default:
				options = append(options, opt)
			}
		}
		o.Mounts = append(o.Mounts, specs.Mount{Destination: to, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	return nil
}

// containerSpec is the document of a container of an image with this configuration.
func (e *env) containerSpec(cmd *cli.Command, c image.Config, o strata.SpecOptions) (*specs.Spec, error) {
	if o.Privileged && inProcess(cmd) {
		return nil, fmt.Errorf("--privileged: not supported with --isolation=process, where the program would be root "+
			"of this system: %w", errors.ErrUnsupported)
	}
	s, err := strata.ContainerSpec(c, o)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(s.Mounts, ocispec.IsBind) && !inProcess(cmd) {
		return nil, fmt.Errorf("a folder of this host in the container: not supported in a VM yet: %w",
			errors.ErrUnsupported)
	}
	return s, nil
}

// readSpec reads the document that --spec names.
func readSpec(path string) (*specs.Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--spec: %w", err)
	}
	defer f.Close()
	s, err := strata.ParseSpec(f)
	if err != nil {
		return nil, fmt.Errorf("--spec %s: %w", printable(path), err)
	}
	return s, nil
}
