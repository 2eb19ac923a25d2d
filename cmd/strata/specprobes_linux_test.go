package main

// probe is a part of a container's document and what a program in the container sees of it.
type probe struct {
	in    string // the name of the document; probes of one name share a container
	at    string // the field that is set, as docs/status.md writes it; a list's "[]" adds an element
	value string // as JSON; $DATA is a folder of the host, and $DISK the numbers of a disk
	see   string // shell commands that print what is seen; alike in a container whose document does not set the field
	want  string // what they print, white space aside
	// v1 is want where control groups are of version 1; "-": the field cannot be seen there.
	v1 string
	// same: the defaults look the same.
	same bool
	// vm: only there. root: not in a user namespace, where there are no control groups and no device nodes.
	vm, root bool
}

// probes has each field that docs/status.md calls honoured, besides the options of mounts: see optionProbes. The
// documents are those of root, of one with a terminal, of a user by number, and of a user by name in the machine's
// network and cgroups.
var probes = []probe{
	{in: "root", at: "ociVersion", value: `"1.3.0"`, see: "echo started", want: "started", same: true},
	{in: "terminal", at: "process.terminal", value: "true", see: "[ -t 0 ] && echo terminal", want: "terminal"},
	{in: "terminal", at: "process.consoleSize", value: `{"height": 33, "width": 77}`, see: "stty size", want: "33 77"},
	{in: "root", at: "process.args[]", value: `"an 'odd\" $one\\"`, see: `echo "$1"`, want: `an 'odd" $one\`},
	{in: "root", at: "process.env[]", value: `"ODD=a=b'$c"`, see: `echo "$ODD"`, want: "a=b'$c"},
	{in: "root", at: "process.cwd", value: `"/made/here"`, see: "pwd", want: "/made/here"},
	{in: "root", at: "process.rlimits", value: `[
		{"type": "RLIMIT_AS", "soft": 1099511627776, "hard": 2199023255552}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 2},
		{"type": "RLIMIT_CPU", "soft": 3000, "hard": 4000}, {"type": "RLIMIT_DATA", "soft": 500000000, "hard": 600000000},
		{"type": "RLIMIT_FSIZE", "soft": 7000000, "hard": 8000000}, {"type": "RLIMIT_LOCKS", "soft": 9, "hard": 10},
		{"type": "RLIMIT_MEMLOCK", "soft": 110000, "hard": 120000}, {"type": "RLIMIT_MSGQUEUE", "soft": 13, "hard": 14},
		{"type": "RLIMIT_NOFILE", "soft": 170, "hard": 180},
		{"type": "RLIMIT_NPROC", "soft": 1900, "hard": 2000}, {"type": "RLIMIT_RSS", "soft": 210000, "hard": 220000},
		{"type": "RLIMIT_RTTIME", "soft": 250000, "hard": 260000},
		{"type": "RLIMIT_SIGPENDING", "soft": 270, "hard": 280},
		{"type": "RLIMIT_STACK", "soft": 2900000, "hard": 3000000}]`,
		see: `sed 's/^[^ ]* *\([a-z]* [a-z]*\)  */\1 /' /proc/self/limits | awk 'NR > 1 {
			for (i = 1; i <= NF && $i !~ /^[0-9u]/; i++); print $i "-" $(i + 1) }'`,
		want: "3000-4000 7000000-8000000 500000000-600000000 2900000-3000000 1-2 210000-220000 1900-2000 170-180 " +
			"110000-120000 1099511627776-2199023255552 9-10 270-280 13-14 0-0 0-0 250000-260000"},
	{in: "user", at: "process.rlimits", vm: true, // which root of a system may be unable to raise
		value: `[{"type": "RLIMIT_NICE", "soft": 15, "hard": 16}, {"type": "RLIMIT_RTPRIO", "soft": 23, "hard": 24}]`,
		see:   "grep priority /proc/self/limits", want: "Max nice priority 15 16 Max realtime priority 23 24"},
	{in: "root", at: "process.noNewPrivileges", value: "true",
		see: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs: 1"},
	{in: "root", at: "process.oomScoreAdj", value: "77", see: "cat /proc/self/oom_score_adj", want: "77"},
	{in: "root", at: "root.path", value: `"rootfs"`, see: "cat /opt/file", want: "of the image", same: true},
	{in: "root", at: "hostname", value: `"doc"`, see: "hostname", want: "doc"},
	{in: "root", at: "mounts[]",
		value: `{"destination": "/opt/data", "type": "bind", "source": "$DATA", "options": ["rbind", "ro", "nosuid"]}`,
		see:   "cat /opt/data/file; echo x 2>/dev/null >/opt/data/new || echo shut", want: "of the host shut"},
	{in: "root", at: "mounts[]",
		value: `{"destination": "/opt/copied", "type": "tmpfs", "options": ["tmpcopyup", "size=1m"]}`,
		see:   "cat /opt/copied/file; grep -c /opt/copied /proc/mounts", want: "copied 1"},
	{in: "root", at: "mounts[]", value: `{"destination": "/opt/owned", "type": "tmpfs", "options": ["uid=3", "gid=4"]}`,
		see: "stat -c '%u %g' /opt/owned", want: "3 4"},
	{in: "root", at: "annotations",
		value: `{"org.stratavm.etc": "{\"hosts\":[{\"address\":\"10.0.0.2\",\"name\":\"db\"}]}",
		"org.example": "x"}`, see: "grep db /etc/hosts", want: "10.0.0.2 db"},
	{in: "root", at: "linux.sysctl",
		value: `{"net.core.somaxconn": "77", "kernel.msgmax": "9000", "fs.mqueue.msg_max": "7",
			"kernel/sem": "100 200 30 40"}`,
		see:  "cd /proc/sys; cat net/core/somaxconn kernel/msgmax fs/mqueue/msg_max kernel/sem",
		want: "77 9000 7 100 200 30 40"},
	{root: true, in: "root", at: "linux.resources.devices[]",
		value: `{"allow": true, "type": "c", "major": 120, "minor": -1}`,
		see:   "tries /dev/a/plain", want: "No such device or address No such device or address"},
	{root: true, in: "root", at: "linux.resources.devices[]",
		value: `{"allow": true, "type": "c", "major": 121, "minor": 7, "access": "r"}`,
		see:   "tries /dev/made", want: "No such device or address Operation not permitted"},
	{root: true, in: "root", at: "linux.devices[]",
		value: `{"path": "/dev/a/plain", "type": "c", "major": 120, "minor": 8}`,
		see:   "stat -c '%F %t:%T' /dev/a/plain", want: "character special file 78:8"},
	{root: true, in: "root", at: "linux.devices[]",
		value: `{"path": "/dev/made", "type": "c", "major": 121, "minor": 7, "fileMode": 416, "uid": 3, "gid": 4}`,
		see:   "stat -c '%F %A %t:%T %u %g' /dev/made", want: "character special file crw-r----- 79:7 3 4"},
	{root: true, in: "root", at: "linux.devices[]",
		value: `{"path": "/dev/a/block", "type": "b", "major": 121, "minor": 8}`,
		see:   "stat -c '%F %t:%T' /dev/a/block", want: "block special file 79:8"},
	{root: true, in: "root", at: "linux.devices[]", value: `{"path": "/dev/other", "type": "u", "major": 1, "minor": 3}`,
		see: "stat -c '%F %t:%T' /dev/other", want: "character special file 1:3"},
	{root: true, in: "root", at: "linux.devices[]", value: `{"path": "/dev/pipe", "type": "p", "fileMode": 384}`,
		see: "stat -c '%F %A' /dev/pipe", want: "fifo prw-------"},

	{root: true, in: "root", at: "linux.resources.memory",
		value: `{"limit": 67108864, "reservation": 33554432, "swap": 134217728}`,
		see: "group memory.max memory/memory.limit_in_bytes; group memory.low memory/memory.soft_limit_in_bytes; " +
			"group memory.swap.max memory/memory.memsw.limit_in_bytes",
		want: "67108864 33554432 67108864", v1: "67108864 33554432 134217728"},
	{root: true, in: "root", at: "linux.resources.cpu.shares", value: "512",
		see: "group cpu.weight cpu/cpu.shares", want: "20", v1: "512"},
	{root: true, in: "root", at: "linux.resources.cpu.quota", value: "30000",
		see: "group cpu.max cpu/cpu.cfs_quota_us | cut -d ' ' -f 1", want: "30000"},
	{root: true, in: "root", at: "linux.resources.cpu.period", value: "60000",
		see: "group cpu.max cpu/cpu.cfs_period_us | sed 's/.* //'", want: "60000"},
	{root: true, in: "root", at: "linux.resources.cpu.cpus", value: `"0"`,
		see: "group cpuset.cpus cpuset/cpuset.cpus", want: "0"},
	{root: true, in: "root", at: "linux.resources.cpu.mems", value: `"0"`,
		see: "group cpuset.mems cpuset/cpuset.mems", want: "0", same: true},
	{root: true, in: "root", at: "linux.resources.pids.limit", value: "333",
		see: "group pids.max pids/pids.max", want: "333"},
	{root: true, in: "root", at: "linux.resources.blockIO.weight", value: "500",
		see:  "group io.bfq.weight blkio/blkio.bfq.weight || group io.weight blkio/blkio.weight",
		want: "default 4950", v1: "-"},
	{root: true, in: "root", at: "linux.resources.blockIO.throttleReadBpsDevice[]", value: `{$DISK, "rate": 1000000}`,
		see: "throttle rbps read_bps", want: "1000000"},
	{root: true, in: "root", at: "linux.resources.blockIO.throttleWriteBpsDevice[]", value: `{$DISK, "rate": 2000000}`,
		see: "throttle wbps write_bps", want: "2000000"},
	{root: true, in: "root", at: "linux.resources.blockIO.throttleReadIOPSDevice[]", value: `{$DISK, "rate": 300}`,
		see: "throttle riops read_iops", want: "300"},
	{root: true, in: "root", at: "linux.resources.blockIO.throttleWriteIOPSDevice[]", value: `{$DISK, "rate": 400}`,
		see: "throttle wiops write_iops", want: "400"},
	{root: true, in: "root", at: "linux.resources.hugepageLimits[]", value: `{"pageSize": "2MB", "limit": 4194304}`,
		see: "group hugetlb.2MB.max hugetlb/hugetlb.2MB.limit_in_bytes", want: "4194304", v1: "-"},
	{root: true, in: "root", at: "linux.resources.unified", value: `{"memory.high": "50331648"}`,
		see: "group memory.high", want: "50331648", v1: "-"},

	{in: "root", at: "linux.seccomp", value: `{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
		"syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
			{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 16,
				"args": [{"index": 1, "value": 18, "op": "SCMP_CMP_EQ"}]}]}`,
		see: "mkdir /tmp/made; kill -0 $$ && kill -CONT $$",
		want: "mkdir: can't create directory '/tmp/made': No space left on device " +
			"sh: can't kill pid 1: Device or resource busy"},
	{in: "root", at: "linux.maskedPaths[]", value: `"/opt/dir"`, see: "ls /opt/dir | wc -l", want: "0"},
	{in: "root", at: "linux.maskedPaths[]", value: `"/opt/secret"`, see: "wc -c </opt/secret", want: "0"},
	{in: "root", at: "linux.readonlyPaths[]", value: `"/opt/fixed"`, see: "touch /opt/fixed/new",
		want: "touch: /opt/fixed/new: Read-only file system"},
	{in: "root", at: "linux.personality.domain", value: `"LINUX32"`,
		see: "cat /proc/self/personality", want: "00000008"},

	{in: "user", at: "process.user",
		value: `{"uid": 1, "gid": 2, "umask": 63, "additionalGids": [5, 6]}`,
		see:   "id -u; id -g; id -G; umask", want: "1 2 2 5 6 0077"},
	{in: "user", at: "process.capabilities",
		value: `{"bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
			"effective": ["CAP_KILL"], "inheritable": ["CAP_CHOWN", "CAP_KILL"], "ambient": ["CAP_KILL"]}`,
		see: "grep ^Cap /proc/self/status",
		want: "CapInh: 0000000000000021 CapPrm: 0000000000000020 CapEff: 0000000000000020 CapBnd: 00000000000000a1 " +
			"CapAmb: 0000000000000020"},
	{in: "user", at: "root.readonly", value: "true",
		see:  `awk '$5 == "/" {print substr($6, 1, 2)}' /proc/self/mountinfo`,
		want: "ro"},
	{in: "user", at: "linux.rootfsPropagation", value: `"private"`,
		see:  "grep -c -E 'shared:|master:' /proc/self/mountinfo",
		want: "0", same: true},

	{in: "name", at: "process.user.username", value: `"app:team"`, see: "id -u; id -g", want: "1001 1002"},
	{in: "name", at: "annotations", value: `{"org.stratavm.init": "true"}`,
		see: "cat /proc/1/comm", want: ".strata-init"},
	{root: true, in: "name", at: "linux.namespaces",
		value: `[{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]`,
		see: `[ $(readlink /proc/self/ns/net) = "$NET" -o "$NET" = VM -a -e /proc/sys/net/core/netdev_budget ] && ` +
			`echo the machine\'s network; ` +
			`grep -q /strata- /proc/self/cgroup && echo the machine\'s cgroups`,
		want: "the machine's network the machine's cgroups"},
	{in: "name", at: "linux.sysctl", value: `{}`, see: "cat /proc/sys/kernel/msgmax", want: "8192", same: true},
}

// optionProbe is a mount with options, and the words that say how it is mounted.
type optionProbe struct {
	mount string // as JSON, without its destination
	want  string // words of its line in mountinfo, "!" before those that must not be there
}

// optionProbes has every option of mounts.
var optionProbes = []optionProbe{
	{`{"type": "tmpfs", "options": ["ro", "nosuid", "nodev", "noexec"]}`, "ro nosuid nodev noexec"},
	{`{"type": "tmpfs", "options": ["defaults"]}`, "rw relatime !nosuid !nodev !noexec"},
	{`{"type": "tmpfs", "options": ["rw", "suid", "dev", "exec"]}`, "rw !ro !nosuid !nodev !noexec"},
	{`{"type": "tmpfs", "options": ["sync", "dirsync"]}`, "sync dirsync"},
	{`{"type": "tmpfs", "options": ["async"]}`, "!sync"},
	{`{"type": "tmpfs", "options": ["noatime"]}`, "noatime !relatime"},
	{`{"type": "tmpfs", "options": ["atime"]}`, "!noatime"},
	{`{"type": "tmpfs", "options": ["nodiratime"]}`, "nodiratime"},
	{`{"type": "tmpfs", "options": ["diratime"]}`, "!nodiratime"},
	{`{"type": "tmpfs", "options": ["relatime"]}`, "relatime"},
	{`{"type": "tmpfs", "options": ["strictatime"]}`, "!relatime !noatime"},
	{`{"type": "tmpfs", "options": ["size=64k", "mode=750", "nr_inodes=99"]}`, "size=64k mode=750 nr_inodes=99"},
	{`{"type": "tmpfs", "options": ["nr_blocks=5"]}`, "size=20k"},
	{`{"type": "tmpfs", "options": ["private", "norelatime", "nostrictatime"]}`, "relatime"},
	{`{"type": "bind", "source": "$DATA", "options": ["bind", "ro"]}`, "ro"},
	{`{"type": "bind", "source": "$DATA", "options": ["rbind", "rprivate", "rro", "rnosuid", "rnodev", "rnoexec"]}`,
		"ro nosuid nodev noexec"},
}
