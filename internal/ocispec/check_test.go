package ocispec

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// valid is a document that passes Check.
func valid() *specs.Spec {
	s := Default()
	s.Process.Args = []string{"/bin/sh"}
	s.Process.Env = []string{DefaultPath}
	s.Hostname = "box"
	return s
}

func mount(s *specs.Spec, to, typ, from string, options ...string) {
	s.Mounts = append(s.Mounts, specs.Mount{Destination: to, Type: typ, Source: from, Options: options})
}

func without(s *specs.Spec, t specs.LinuxNamespaceType) {
	var kept []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != t {
			kept = append(kept, n)
		}
	}
	s.Linux.Namespaces = kept
}

// TestCheckAccepts: documents that are honoured as they are.
func TestCheckAccepts(t *testing.T) {
	for name, change := range map[string]func(s *specs.Spec){
		"the defaults":        func(*specs.Spec) {},
		"version 1.3.0":       func(s *specs.Spec) { s.Version = "1.3.0" },
		"a bind":              func(s *specs.Spec) { mount(s, "/data", "bind", "/srv", "rbind", "ro") },
		"a bind without type": func(s *specs.Spec) { mount(s, "/data", "", "/srv/a,b:c d", "bind") },
		"a tmpfs": func(s *specs.Spec) {
			mount(s, "/run", "tmpfs", "tmpfs", "size=64k", "mode=755")
		},
		"the machine's network": func(s *specs.Spec) {
			without(s, specs.NetworkNamespace)
			s.Linux.Sysctl = nil
		},
		"limits": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(-1))}
		},
		"no OOM killer disabled": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{DisableOOMKiller: ptr(false)}
		},
		"limits of the root user": func(s *specs.Spec) {
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))}
		},
		"annotations": func(s *specs.Spec) {
			s.Annotations = map[string]string{"org.example": "x\ny"}
		},
		"no capability": func(s *specs.Spec) { s.Process.Capabilities = nil },
		"a device": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
		},
		"seccomp": func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow} },
	} {
		s := valid()
		change(s)
		if err := Check(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckRefuses: each is one error, which names the field and says what is wrong.
func TestCheckRefuses(t *testing.T) {
	for want, change := range map[string]func(s *specs.Spec){
		"ociVersion: it is missing": func(s *specs.Spec) { s.Version = "" },
		`ociVersion: "2.0.0" is no version`: func(s *specs.Spec) {
			s.Version = "2.0.0"
		},
		"process.args: there is no program to run": func(s *specs.Spec) {
			s.Process = nil
			s.Linux.Resources = nil
		},
		"process.args[1]: it contains a NUL byte": func(s *specs.Spec) {
			s.Process.Args = []string{"a", "b\x00c"}
		},
		"process.args[0]: it is not UTF-8": func(s *specs.Spec) {
			s.Process.Args = []string{"a\xff"}
		},
		"process.args: it has 300000 entries, and may have 262144": func(s *specs.Spec) {
			s.Process.Args = make([]string, 300000)
		},
		"process.args[0]: it has 200000 bytes, and may have 131072": func(s *specs.Spec) {
			s.Process.Args = []string{strings.Repeat("x", 200000)}
		},
		`process.env: "A": write KEY=VALUE`: func(s *specs.Spec) {
			s.Process.Env = []string{"A"}
		},
		`process.cwd: "srv": give an absolute path`: func(s *specs.Spec) {
			s.Process.Cwd = "srv"
		},
		`process.cwd: "/a/../..": give a path without ".."`: func(s *specs.Spec) {
			s.Process.Cwd = "/a/../.."
		},
		"process.cwd: it is missing": func(s *specs.Spec) {
			s.Process.Cwd = ""
		},
		"process.oomScoreAdj: 1001: use -1000 to 1000": func(s *specs.Spec) {
			s.Process.OOMScoreAdj = ptr(1001)
		},
		`process.capabilities.ambient: "NET_RAW": there is no such`: func(s *specs.Spec) {
			s.Process.Capabilities.Ambient = []string{"NET_RAW"}
		},
		`process.rlimits[0]: "NOFILE": there is no such limit`: func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "NOFILE"}}
		},
		"RLIMIT_CPU: the soft limit 2 is more than the hard one, 1": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 2, Hard: 1}}
		},
		`process.rlimits[1]: "RLIMIT_NOFILE" is there twice`: func(s *specs.Spec) {
			s.Process.Rlimits = append(s.Process.Rlimits, s.Process.Rlimits[0])
		},
		`root.path: "/srv/root": not supported`: func(s *specs.Spec) {
			s.Root.Path = "/srv/root"
		},
		`hostname: "a b" is no host name`: func(s *specs.Spec) {
			s.Hostname = "a b"
		},
		`mounts[7].destination: "data": give an absolute path`: func(s *specs.Spec) {
			mount(s, "data", "tmpfs", "")
		},
		`"/a/../../etc": give a path without ".."`: func(s *specs.Spec) {
			mount(s, "/a/../../etc", "tmpfs", "")
		},
		`"/": nothing can be mounted over the root`: func(s *specs.Spec) {
			mount(s, "/", "tmpfs", "")
		},
		`"/.//": nothing can be mounted over the root`: func(s *specs.Spec) {
			mount(s, "/.//", "tmpfs", "")
		},
		`mounts[7]: it has no destination`: func(s *specs.Spec) {
			mount(s, "", "tmpfs", "")
		},
		`mounts[7]: "/dev" is there twice, as 1 and 7`: func(s *specs.Spec) {
			mount(s, "/dev/", "tmpfs", "")
		},
		"mounts[7]: /proc/sys: nothing can be mounted over /proc": func(s *specs.Spec) {
			mount(s, "/proc/sys", "bind", "/x", "bind")
		},
		"mounts[0]: /proc: nothing can be mounted over /proc": func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/proc", Type: "tmpfs"}}
		},
		`/mnt: "proc" can be mounted at /proc only`: func(s *specs.Spec) {
			mount(s, "/mnt", "proc", "proc")
		},
		`/mnt: type "ext4": not supported`: func(s *specs.Spec) {
			mount(s, "/mnt", "ext4", "/dev/sda")
		},
		`mounts[7]: source "srv": give an absolute path`: func(s *specs.Spec) {
			mount(s, "/mnt", "bind", "srv", "bind")
		},
		`it is of type "tmpfs" and has the option of a bind`: func(s *specs.Spec) {
			mount(s, "/mnt", "tmpfs", "/srv", "rbind")
		},
		`mounts[7].options: "shared": not supported as an option`: func(s *specs.Spec) {
			mount(s, "/mnt", "bind", "/srv", "bind", "shared")
		},
		`mounts[7].options: "size=1,ro": not supported as an option`: func(s *specs.Spec) {
			mount(s, "/mnt", "tmpfs", "", "size=1,ro")
		},
		"without a cgroup namespace it has to be read-only": func(s *specs.Spec) {
			without(s, specs.CgroupNamespace)
			s.Mounts[4].Options = nil
		},
		`annotations: "run.oci.handler": not supported`: func(s *specs.Spec) {
			s.Annotations = map[string]string{"run.oci.handler": "krun"}
		},
		"linux.namespaces: mount is missing": func(s *specs.Spec) {
			without(s, specs.MountNamespace)
		},
		"linux.namespaces: pid is missing": func(s *specs.Spec) { s.Linux = nil },
		`linux.namespaces[6]: "pid" is there twice`: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
		},
		`linux.namespaces[6].type: "user": not supported`: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		},
		"linux.namespaces[6].type: it is missing": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{})
		},
		"without a network namespace it would change the host's": func(s *specs.Spec) {
			without(s, specs.NetworkNamespace)
		},
		`linux.sysctl: "kernel.core_pattern": not supported`: func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"}
		},
		`linux.sysctl: "net/../kernel/core_pattern" is no name`: func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net/../kernel/core_pattern": "|/x"}
		},
		"linux.resources.memory.limit: 4096 bytes: use 6291456": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(4096))}
		},
		"linux.resources.memory.limit: -2 bytes": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(-2))}
		},
		"linux.resources.memory.swap: it is the sum": func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Swap: ptr(int64(1 << 30))}
		},
		"linux.resources.cpu.quota: 0 microseconds": func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: ptr(int64(0))}
		},
		"linux.resources.cpu.period: 1: use 1000 to 1000000": func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Period: ptr(uint64(1))}
		},
		"linux.resources.cpu.shares: 18446744073709551615: use 2": func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: ptr(^uint64(0))}
		},
		`linux.resources.cpu.cpus: "../x" is no list`: func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "../x"}
		},
		"linux.resources.pids.limit: 0 processes": func(s *specs.Spec) {
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr(int64(0))}
		},
		`linux.resources.devices[0].access: "rx" is no access`: func(s *specs.Spec) {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Access: "rx"}}
		},
		`linux.resources.unified: "cgroup.procs" is no limit`: func(s *specs.Spec) {
			s.Linux.Resources.Unified = map[string]string{"cgroup.procs": "1"}
		},
		`linux.devices[0].path: "/etc/sda": devices are below /dev`: func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/etc/sda", Type: "b"}}
		},
		"linux.devices[0].type: it is missing": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda"}}
		},
		`linux.rootfsPropagation: "rslave": use one of`: func(s *specs.Spec) {
			s.Linux.RootfsPropagation = "rslave"
		},
		`mounts[7].options: "rw" and "ro" exclude each other`: func(s *specs.Spec) {
			mount(s, "/mnt", "tmpfs", "", "ro", "rw")
		},
		`mounts[7].options: "unbindable": not supported as an option`: func(s *specs.Spec) {
			mount(s, "/mnt", "tmpfs", "", "unbindable")
		},
		`linux.maskedPaths: "proc/kcore": give an absolute path`: func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"proc/kcore"}
		},
		"linux.seccomp: defaultAction: it is missing": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{}
		},
		`defaultAction: "SCMP_ACT_NOTIFY": not supported`: func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify}
		},
		`linux.seccomp: syscalls[0].action: "ALLOW": there is no`: func(s *specs.Spec) {
			seccompCall(s, specs.LinuxSyscall{Names: []string{"read"}, Action: "ALLOW"})
		},
		"linux.seccomp: syscalls[0].names: a name is missing": func(s *specs.Spec) {
			seccompCall(s, specs.LinuxSyscall{Action: specs.ActLog})
		},
		"syscalls[0].args[0].index: 6": func(s *specs.Spec) {
			seccompArg(s, specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})
		},
		`syscalls[0].args[0].op: "=="`: func(s *specs.Spec) {
			seccompArg(s, specs.LinuxSeccompArg{Op: "=="})
		},
	} {
		s := valid()
		change(s)
		err := Check(s)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		} else if n := strings.Count(err.Error(), "\n"); n > 3 {
			t.Errorf("%d errors for one fault: %v", n+1, err)
		}
	}
}

func seccompCall(s *specs.Spec, call specs.LinuxSyscall) {
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{call}}
}

func seccompArg(s *specs.Spec, a specs.LinuxSeccompArg) {
	seccompCall(s, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{a}})
}

// TestFewErrors: of a document full of faults a few are listed.
func TestFewErrors(t *testing.T) {
	s := valid()
	s.Process.Args = strings.Split(strings.Repeat("\x00 ", 1000), " ")
	err := Check(s)
	if n := strings.Count(err.Error(), "\n"); n != maxErrors || !strings.HasSuffix(err.Error(), "and more") {
		t.Errorf("%d errors: %v", n+1, err)
	}
}

// TestDecode: what is not a document is an error that says where.
func TestDecode(t *testing.T) {
	whole, err := json.Marshal(valid())
	if err != nil {
		t.Fatal(err)
	}
	doc := string(whole)
	if _, err := Decode(strings.NewReader(doc)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ doc, want string }{
		{"", "the JSON ends too early"},
		{"null", "the JSON document is null"},
		{"[]", "it is a JSON array, which does not fit"},
		{doc[:len(doc)/2], "the JSON ends too early"},
		{doc + "{}", "something follows the JSON document"},
		{doc + "x", "something follows the JSON document"},
		{strings.Repeat("[", 1<<20), "more than 32 objects and lists in each other"},
		{strings.Repeat(" ", MaxSize+1), "more than 4 MiB"},
		{`{"process":{"user":{"uid":0,"nick":"x"}}}`, "process.user.nick: there is no such field"},
		{`{"mounts":[{},{"destination":"/a","src":"/b"}]}`, "mounts[1].src: there is no such field"},
		{`{"Hooks":{}}`, "Hooks: there is no such field"},
		{`{"a\u001b[31m":1}`, `"a\x1b[31m": there is no such field`},
		{`{"hostname":"a","hostname":"b"}`, "hostname: the field is written twice"},
		{`{"annotations":{"a":"1","a":"2"}}`, "annotations.a: the field is written twice"},
		{`{"mounts":[null]}`, "mounts[0]: an element of a list is null"},
		{`{"process":{"args":"sh"}}`, "process.args: it is a JSON string, which does not fit"},
		{`{"linux":{"resources":{"memory":{"limit":9223372036854775808}}}}`,
			"linux.resources.memory.limit: it is a JSON number 9223372036854775808, which does not fit"},
		{`{"linux":{"resources":{"blockIO":{"throttleReadBpsDevice":[{"majr":1}]}}}}`,
			"throttleReadBpsDevice[0].majr: there is no such field"},
		{`{"ociVersion":"1.0.2","hooks":{"prestart":[{"path":"/x"}]}}`, "hooks: not supported"},
		{strings.Replace(doc, `"hostname"`, `"windows":{"layerFolders":["x"]},"hostname"`, 1),
			"windows: not supported: the container is one of Linux"},
	} {
		s, err := Decode(strings.NewReader(tt.doc))
		if err == nil || s != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.80s: %v, want %q", tt.doc, err, tt.want)
		}
	}
	if _, err := Decode(strings.NewReader(`{"hooks":{"prestart":[{"path":"/x"}]}}`)); !errors.Is(err, ErrRefused) {
		t.Errorf("%v does not match ErrRefused", err)
	}
}

// FuzzDecode: whatever is read ends in an error or in a document that is read again as the same.
func FuzzDecode(f *testing.F) {
	whole, err := json.Marshal(valid())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(whole), "", "null", "[[[[", `{"hooks":null}`, `{"linux":{"seccomp":{}}}`,
		`{"process":{"rlimits":[{}],"user":{"umask":1e3}}}`, `{"mounts":[{"destination":"/a"},{"destination":"//a/"}]}`,
		`{"annotations":{"":""},"linux":{"sysctl":{"net..x":"1"},"devices":[{}],"namespaces":[{}]}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := Decode(strings.NewReader(doc))
		if err != nil {
			return
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(strings.NewReader(string(b)))
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if second, err := json.Marshal(again); err != nil || string(second) != string(b) {
			t.Errorf("%s, then %s (%v)", b, second, err)
		}
	})
}

// FuzzSeccomp: whatever is given as a profile ends in an error or in one that passes the check of documents.
func FuzzSeccomp(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null,{}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64",
		"subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,
		"value":1,"op":"SCMP_CMP_EQ"}],"includes":{"minKernel":"4.8"},"excludes":{"caps":["CAP_BPF"],"arches":["arm"]}}]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, profile string) {
		p, err := ParseSeccomp([]byte(profile), DefaultCapabilities())
		if err != nil {
			return
		}
		s := valid()
		if s.Linux.Seccomp = p; Check(s) != nil {
			t.Errorf("%s: %v", profile, Check(s))
		}
	})
}
