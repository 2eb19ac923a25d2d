package strata_test

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
)

// plain are options without a seccomp profile, which not every host can evaluate.
func plain(change func(*strata.SpecOptions)) strata.SpecOptions {
	o := strata.SpecOptions{SeccompUnconfined: true}
	if change != nil {
		change(&o)
	}
	return o
}

// TestContainerSpecDefaults: what a container gets for which nothing is said is what docker 28 gives.
func TestContainerSpecDefaults(t *testing.T) {
	s, err := strata.ContainerSpec(image.Config{Cmd: []string{"sh"}}, plain(nil))
	if err != nil {
		t.Fatal(err)
	}
	caps := strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP
		CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SYS_CHROOT CAP_MKNOD CAP_AUDIT_WRITE CAP_SETFCAP`)
	type facts struct {
		Version, Cwd        string
		Args, Env           []string
		Caps, Inherit       []string
		Masked, ReadOnly    []string
		Namespaces, Mounts  []string
		FirstDeviceRule     specs.LinuxDeviceCgroup
		Rlimits             []specs.POSIXRlimit
		NewPrivileges, Root bool
	}
	if err := strata.CheckSpec(s); err != nil {
		t.Error(err)
	}
	got := facts{Version: s.Version, Cwd: s.Process.Cwd, Args: s.Process.Args, Env: s.Process.Env,
		Caps: s.Process.Capabilities.Effective, Inherit: s.Process.Capabilities.Inheritable,
		Masked: s.Linux.MaskedPaths, ReadOnly: s.Linux.ReadonlyPaths, FirstDeviceRule: s.Linux.Resources.Devices[0],
		Rlimits: s.Process.Rlimits, NewPrivileges: !s.Process.NoNewPrivileges, Root: !s.Root.Readonly}
	for _, n := range s.Linux.Namespaces {
		got.Namespaces = append(got.Namespaces, string(n.Type))
	}
	slices.Sort(got.Namespaces)
	for _, m := range s.Mounts {
		got.Mounts = append(got.Mounts, m.Destination+" "+m.Type+" "+strings.Join(m.Options, ","))
	}
	want := facts{Version: "1.0.2", Cwd: "/", Args: []string{"sh"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Caps: caps,
		Masked: strings.Fields(`/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats
			/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats
			/sys/devices/virtual/powercap /sys/firmware`),
		ReadOnly:        strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"),
		Namespaces:      strings.Fields("cgroup ipc mount network pid uts"),
		FirstDeviceRule: specs.LinuxDeviceCgroup{Access: "rwm"},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1048576, Hard: 1048576}},
		Mounts: []string{"/proc proc nosuid,noexec,nodev", "/dev tmpfs nosuid,strictatime,mode=755,size=65536k",
			"/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
			"/sys sysfs nosuid,noexec,nodev,ro",
			"/sys/fs/cgroup cgroup ro,nosuid,noexec,nodev", "/dev/mqueue mqueue nosuid,noexec,nodev",
			"/dev/shm tmpfs nosuid,noexec,nodev,mode=1777,size=65536k"},
		NewPrivileges: true, Root: true}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestContainerSpecProcess: which program runs, with which environment, where and as whom.
func TestContainerSpecProcess(t *testing.T) {
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	img := image.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1", "B=2", "none", "=x"},
		WorkingDir: "srv/../www", User: "www-data", StopSignal: "SIGINT", Ports: []string{"80/tcp", "443"},
		Labels: map[string]string{"org.example": "x", "run.oci.handler": "krun", "io.microsoft.x": "1"}}
	type result struct {
		Args, Env []string
		Cwd       string
		User      specs.User
	}
	www := specs.User{Username: "www-data"}
	env := []string{path, "A=1", "B=2"}
	for name, tt := range map[string]struct {
		o    func(*strata.SpecOptions)
		want result
	}{
		"as the image": {nil, result{[]string{"/entry", "a", "b"}, env, "/www", www}},
		"arguments": {func(o *strata.SpecOptions) { o.Args = []string{"c"} },
			result{[]string{"/entry", "c"}, env, "/www", www}},
		"no entrypoint": {func(o *strata.SpecOptions) { o.Entrypoint, o.Args = []string{}, []string{"c"} },
			result{[]string{"c"}, env, "/www", www}},
		"another entrypoint": {func(o *strata.SpecOptions) { o.Entrypoint = []string{"/e2"} },
			result{[]string{"/e2"}, env, "/www", www}},
		"environment": {func(o *strata.SpecOptions) { o.Env = []string{"B=3", "C=4", "PATH=/bin"}; o.Hostname = "box" },
			result{[]string{"/entry", "a", "b"}, []string{"PATH=/bin", "HOSTNAME=box", "A=1", "B=3", "C=4"},
				"/www", www}},
		"terminal": {func(o *strata.SpecOptions) { o.Terminal = true },
			result{[]string{"/entry", "a", "b"}, []string{path, "TERM=xterm", "A=1", "B=2"}, "/www", www}},
		"numbers": {func(o *strata.SpecOptions) { o.User, o.WorkDir = "12:34", "/x" },
			result{[]string{"/entry", "a", "b"}, env, "/x", specs.User{UID: 12, GID: 34}}},
		"a number": {func(o *strata.SpecOptions) { o.User = "12" },
			result{[]string{"/entry", "a", "b"}, env, "/www", specs.User{Username: "12"}}},
	} {
		s, err := strata.ContainerSpec(img, plain(tt.o))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := result{s.Process.Args, s.Process.Env, s.Process.Cwd, s.Process.User}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		notes := map[string]string{"org.example": "x", "org.opencontainers.image.stopSignal": "SIGINT",
			"org.stratavm.etc":                      "{}",
			"org.opencontainers.image.exposedPorts": "80/tcp,443"}
		if d := cmp.Diff(notes, s.Annotations); d != "" {
			t.Errorf("%s: annotations, of which a label may not become one that the runtime heeds: %s", name, d)
		}
	}
	_, err := strata.ContainerSpec(image.Config{}, plain(nil))
	if err == nil || !strings.Contains(err.Error(), "what to run") {
		t.Errorf("an image without a program: %v", err)
	}
}

// TestContainerSpecRights: capabilities, and what of the machine the container sees.
func TestContainerSpecRights(t *testing.T) {
	for name, tt := range map[string]struct {
		o    func(*strata.SpecOptions)
		want func(*specs.Spec) bool
	}{
		"drop all, add two": {
			func(o *strata.SpecOptions) {
				o.CapDrop, o.CapAdd = []string{"all"}, []string{"net_admin", "CAP_CHOWN"}
			},
			func(s *specs.Spec) bool {
				return slices.Equal(s.Process.Capabilities.Bounding, []string{"CAP_CHOWN", "CAP_NET_ADMIN"})
			}},
		"add all but one": {
			func(o *strata.SpecOptions) { o.CapAdd, o.CapDrop = []string{"ALL"}, []string{"SYS_ADMIN"} },
			func(s *specs.Spec) bool {
				caps := s.Process.Capabilities.Permitted
				return len(caps) == 40 && !slices.Contains(caps, "CAP_SYS_ADMIN")
			}},
		"drop one": {
			func(o *strata.SpecOptions) { o.CapDrop = []string{"MKNOD"} },
			func(s *specs.Spec) bool {
				caps := s.Process.Capabilities.Effective
				return len(caps) == 13 && !slices.Contains(caps, "CAP_MKNOD")
			}},
		"drop all": {
			func(o *strata.SpecOptions) { o.CapDrop = []string{"ALL"} },
			func(s *specs.Spec) bool { return len(s.Process.Capabilities.Bounding) == 0 }},
		"privileged": {
			func(o *strata.SpecOptions) { o.Privileged = true },
			func(s *specs.Spec) bool {
				return len(s.Process.Capabilities.Effective) == 41 && len(s.Linux.MaskedPaths) == 0 &&
					len(s.Linux.ReadonlyPaths) == 0 && s.Linux.Resources.Devices[0].Allow && s.Linux.Seccomp == nil
			}},
		"read-only, no new privileges": {
			func(o *strata.SpecOptions) { o.ReadonlyRoot, o.NoNewPrivileges = true, true },
			func(s *specs.Spec) bool { return s.Root.Readonly && s.Process.NoNewPrivileges }},
		"the machine's network": {
			func(o *strata.SpecOptions) { o.HostNetwork = true },
			func(s *specs.Spec) bool {
				return len(s.Linux.Sysctl) == 0 && !slices.ContainsFunc(s.Linux.Namespaces,
					func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
			}},
		"a user namespace": {
			func(o *strata.SpecOptions) { o.UserNamespace = true },
			func(s *specs.Spec) bool { return len(s.Linux.Sysctl) == 1 }},
	} {
		s, err := strata.ContainerSpec(image.Config{Cmd: []string{"sh"}}, plain(tt.o))
		if err != nil || !tt.want(s) {
			t.Errorf("%s: %v, %+v", name, err, s)
		}
	}
}

// TestContainerSpecResources: limits, files and devices.
func TestContainerSpecResources(t *testing.T) {
	adj := -5
	s, err := strata.ContainerSpec(image.Config{Cmd: []string{"sh"}}, plain(func(o *strata.SpecOptions) {
		o.Memory, o.MemorySwap, o.CPUs, o.CPUShares, o.PidsLimit = 64<<20, 128<<20, 0.5, 512, 100
		o.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}, {Type: "RLIMIT_CORE"}}
		o.OOMScoreAdj, o.ShmSize = &adj, 1<<20
		o.Mounts = []specs.Mount{{Destination: "/dev/mqueue/", Type: "tmpfs"}, {Destination: "/data", Type: "bind",
			Source: "/srv", Options: []string{"rbind"}}}
		o.Hosts, o.Nameservers = []strata.SpecHost{{Address: "10.0.0.1", Name: "db"}}, []string{"10.0.0.53"}
		o.Groups = []uint32{7}
		o.Sysctls = map[string]string{"net.core.somaxconn": "10"}
		fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
		o.Devices = []strata.SpecDevice{{LinuxDevice: fuse, Access: "rw"}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 128<<20 || *r.CPU.Quota != 50000 || *r.CPU.Period != 100000 ||
		*r.CPU.Shares != 512 || *r.Pids.Limit != 100 || *s.Process.OOMScoreAdj != -5 {
		t.Errorf("limits: %+v %+v %+v", r.Memory, r.CPU, r.Pids)
	}
	if d := cmp.Diff([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}, {Type: "RLIMIT_CORE"}},
		s.Process.Rlimits); d != "" {
		t.Error(d)
	}
	var mounts []string
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Destination+" "+m.Type+" "+m.Source)
	}
	want := []string{"/proc proc proc", "/dev tmpfs tmpfs", "/dev/pts devpts devpts", "/sys sysfs sysfs",
		"/sys/fs/cgroup cgroup cgroup", "/dev/shm tmpfs shm", "/dev/mqueue/ tmpfs ", "/data bind /srv"}
	if d := cmp.Diff(want, mounts); d != "" {
		t.Error(d)
	}
	if got := s.Mounts[5].Options; !slices.Contains(got, "size=1048576") {
		t.Errorf("/dev/shm: %q", got)
	}
	last := r.Devices[len(r.Devices)-1]
	if !last.Allow || *last.Major != 10 || last.Access != "rw" || s.Linux.Devices[0].Path != "/dev/fuse" {
		t.Errorf("device: %+v %+v", last, s.Linux.Devices)
	}
	const etc = `{"hosts":[{"address":"10.0.0.1","name":"db"}],"nameservers":["10.0.0.53"]}`
	if got := s.Annotations["org.stratavm.etc"]; got != etc || !slices.Equal(s.Process.User.AdditionalGids, []uint32{7}) {
		t.Errorf("files of /etc %s, groups %v", got, s.Process.User.AdditionalGids)
	}
	if s.Linux.Sysctl["net.core.somaxconn"] != "10" || len(s.Linux.Sysctl) != 3 {
		t.Errorf("sysctls: %v", s.Linux.Sysctl)
	}
}

// TestContainerSpecRefuses: options that cannot be are errors that say which.
func TestContainerSpecRefuses(t *testing.T) {
	for want, change := range map[string]func(*strata.SpecOptions){
		`add capability "FLY": there is no such`: func(o *strata.SpecOptions) { o.CapAdd = []string{"FLY"} },
		"CAP_NET_ADMIN is one":                   func(o *strata.SpecOptions) { o.CapDrop = []string{"netadmin"} },
		"memory.limit: 4096 bytes: use 6291456":  func(o *strata.SpecOptions) { o.Memory = 4096 },
		`"a b" cannot be the name`: func(o *strata.SpecOptions) {
			o.Hosts = []strata.SpecHost{{Address: "10.0.0.1", Name: "a b"}}
		},
		`name server "there"`:                   func(o *strata.SpecOptions) { o.Nameservers = []string{"there"} },
		"a limit is negative":                   func(o *strata.SpecOptions) { o.Memory = -1 },
		"0.001 processors: give 0.01":           func(o *strata.SpecOptions) { o.CPUs = 0.001 },
		"it is the sum of memory and swap":      func(o *strata.SpecOptions) { o.Memory, o.MemorySwap = 1<<30, 8<<20 },
		`process.cwd: "srv": give an absolute`:  func(o *strata.SpecOptions) { o.WorkDir = "srv" },
		"a profile cannot be combined with unc": func(o *strata.SpecOptions) { o.Seccomp = []byte("{}") },
		`"/data" is there twice`:                func(o *strata.SpecOptions) { o.Mounts = make2("/data", "/data/") },
		`"/": nothing can be mounted over`:      func(o *strata.SpecOptions) { o.Mounts = make2("/", "/a") },
		"/proc/1: nothing can be mounted over":  func(o *strata.SpecOptions) { o.Mounts = make2("/proc/1", "/a") },
		`hostname: "-" is no host name`:         func(o *strata.SpecOptions) { o.Hostname = "-" },
		`annotations: "run.oci.x": not supported`: func(o *strata.SpecOptions) {
			o.Annotations = map[string]string{"run.oci.x": ""}
		},
		`"vm.swappiness": not supported`: func(o *strata.SpecOptions) {
			o.Sysctls = map[string]string{"vm.swappiness": "1"}
		},
	} {
		_, err := strata.ContainerSpec(image.Config{Cmd: []string{"sh"}}, plain(change))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func make2(a, b string) []specs.Mount {
	return []specs.Mount{{Destination: a, Type: "tmpfs"}, {Destination: b, Type: "tmpfs"}}
}

// TestContainerSpecSeccomp: the default profile follows the capabilities; a caller's is read strictly.
func TestContainerSpecSeccomp(t *testing.T) {
	sh := image.Config{Cmd: []string{"sh"}}
	s, err := strata.ContainerSpec(sh, strata.SpecOptions{})
	if runtime.GOOS != "linux" {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a profile on another host than Linux: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	allows := func(s *specs.Spec, name string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, name) && len(c.Args) == 0
		})
	}
	if s.Linux.Seccomp.DefaultAction != specs.ActErrno || !allows(s, "read") || allows(s, "mount") {
		t.Errorf("default profile: %s, %d rules", s.Linux.Seccomp.DefaultAction, len(s.Linux.Seccomp.Syscalls))
	}
	s, err = strata.ContainerSpec(sh, strata.SpecOptions{CapAdd: []string{"SYS_ADMIN"}})
	if err != nil || !allows(s, "mount") {
		t.Errorf("mount is not allowed to one with SYS_ADMIN (%v)", err)
	}
	own := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"},
		{"names":["mount"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}`
	s, err = strata.ContainerSpec(sh, strata.SpecOptions{Seccomp: []byte(own)})
	if err != nil || len(s.Linux.Seccomp.Syscalls) != 2 {
		t.Errorf("a profile: %v", err)
	}
	for profile, want := range map[string]string{
		"":                                "the JSON ends too early",
		"{}":                              "neither a defaultAction nor syscalls",
		"null":                            "the JSON document is null",
		`{"defaultAction":"x"}`:           `defaultAction: "x": there is no such action`,
		`{"defaultAct":"SCMP_ACT_ALLOW"}`: "defaultAct: there is no such field",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_NOTIFY"}]}`: "nobody would hear",
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`:                                     "nobody would hear",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`:                                       "syscalls[0]: an element",
		strings.Repeat(" ", 2<<20): "and may have 1048576",
	} {
		_, err := strata.ContainerSpec(sh, strata.SpecOptions{Seccomp: []byte(profile)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", profile, err, want)
		}
	}
}
