package ocispec

import (
	"reflect"
)

// Field is a row of the table of a spec's fields.
type Field struct {
	// Path is the field's JSON path, with "[]" for the elements of a list and "*" for those of a map. A row also covers
	// the field's parts, unless they have their own rows.
	Path string
	// Refused, if set, is the reason why the field is not supported; otherwise it is.
	Refused string
	// Note has details about a supported field, such as its limits.
	Note string

	check    func(v reflect.Value) error // of the value where it is set
	harmless func(v reflect.Value) bool  // values of a refused field that change nothing
}

// Why fields are refused.
const (
	otherSystem = "the container is one of Linux"
	noProfile   = "no guest has security modules, and Strata loads no profiles"
	ignored     = "the runtime of Debian 12 ignores it"
	mapped      = "the root's owners are as in the image: Strata maps no ids"
	onlyV1      = "control groups of version 2 have no such limit"
	ownGroup    = "Strata gives each container a control group of its own"
)

// ownTerminal is the note on a terminal's size.
const ownTerminal = "but the size of the user's own terminal counts where there is one"

var fields = []Field{
	{Path: "ociVersion", check: checkVersion, Note: "1.*; the runtime is given 1.0.2"},

	{Path: "process.terminal"},
	{Path: "process.consoleSize.height", check: between(0, 0xffff), Note: ownTerminal},
	{Path: "process.consoleSize.width", check: between(0, 0xffff), Note: ownTerminal},
	{Path: "process.user.uid"},
	{Path: "process.user.gid"},
	{Path: "process.user.umask", check: between(0, 0o777)},
	{Path: "process.user.additionalGids", check: atMost(1024)},
	{Path: "process.user.username", Note: "a user, and perhaps \":\" and a group, as the files of the root know them"},
	{Path: "process.args", check: atMost(maxList), Note: "at least one"},
	{Path: "process.commandLine", Refused: otherSystem},
	{Path: "process.env", check: checkEnv, Note: "KEY=VALUE"},
	{Path: "process.cwd", check: checkPath, Note: "absolute; it is created where it is missing"},
	{Path: "process.capabilities.bounding", check: checkCapabilities},
	{Path: "process.capabilities.effective", check: checkCapabilities},
	{Path: "process.capabilities.inheritable", check: checkCapabilities},
	{Path: "process.capabilities.permitted", check: checkCapabilities},
	{Path: "process.capabilities.ambient", check: checkCapabilities},
	{Path: "process.rlimits[]", check: checkRlimit, Note: "once each; at most what the host allows"},
	{Path: "process.noNewPrivileges"},
	{Path: "process.apparmorProfile", Refused: noProfile},
	{Path: "process.oomScoreAdj", check: between(-1000, 1000)},
	{Path: "process.scheduler", Refused: ignored},
	{Path: "process.selinuxLabel", Refused: noProfile},
	{Path: "process.ioPriority", Refused: ignored},
	{Path: "process.execCPUAffinity", Refused: ignored},

	{Path: "root.path", check: checkRootPath, Note: "\"rootfs\" or nothing: the root is the one that Strata mounts"},
	{Path: "root.readonly"},
	{Path: "hostname", check: checkHostname},
	{Path: "domainname", Refused: ignored},
	{Path: "mounts[].destination", check: checkDestination, Note: "absolute, each once, not / and nothing below /proc"},
	{Path: "mounts[].type", Note: "bind, tmpfs, and proc, sysfs, devpts, mqueue, cgroup where they belong"},
	{Path: "mounts[].source", Note: "of a bind: an absolute path of the host"},
	{Path: "mounts[].options", check: checkMountOptions,
		Note: "the usual flags, none with its opposite; size, mode, uid, gid of a tmpfs"},
	{Path: "mounts[].uidMappings", Refused: mapped},
	{Path: "mounts[].gidMappings", Refused: mapped},
	{Path: "hooks", Refused: "Strata runs no programs of a document outside of the container"},
	{Path: "annotations", check: checkAnnotations,
		Note: "those of Strata; others are kept, but not given to the runtime; not those that would change what it does"},

	{Path: "linux.uidMappings", Refused: mapped},
	{Path: "linux.gidMappings", Refused: mapped},
	{Path: "linux.sysctl", check: checkSysctls, Note: "those that belong to the network and IPC of the container"},
	{Path: "linux.resources.devices[].allow", Note: "a denial is of all, or of what no rule before it allows; " +
		"what every container has, such as /dev/null, stays allowed"},
	{Path: "linux.resources.devices[].type", check: oneOf("a", "b", "c"), Note: "a, or none, with all numbers only"},
	{Path: "linux.resources.devices[].major", check: between(-1, 1<<12-1)},
	{Path: "linux.resources.devices[].minor", check: between(-1, 1<<20-1)},
	{Path: "linux.resources.devices[].access", check: checkAccess, Note: "of r, w and m; m is never denied"},
	{Path: "linux.resources.memory.limit", check: checkMemory, Note: "6 MiB at least, or -1"},
	{Path: "linux.resources.memory.reservation", check: checkMemory},
	{Path: "linux.resources.memory.swap", check: checkMemory, Note: "with the memory; not less than the limit"},
	{Path: "linux.resources.memory.kernel", Refused: onlyV1},
	{Path: "linux.resources.memory.kernelTCP", Refused: onlyV1},
	{Path: "linux.resources.memory.swappiness", Refused: onlyV1},
	{Path: "linux.resources.memory.disableOOMKiller", Refused: onlyV1, harmless: isFalse},
	{Path: "linux.resources.memory.useHierarchy", Refused: onlyV1, harmless: isTrue},
	{Path: "linux.resources.memory.checkBeforeUpdate", Refused: ignored, harmless: isFalse},
	{Path: "linux.resources.cpu.shares", check: between(2, 1<<18)},
	{Path: "linux.resources.cpu.quota", check: checkQuota, Note: "microseconds, 1000 at least, or -1"},
	{Path: "linux.resources.cpu.burst", Refused: ignored},
	{Path: "linux.resources.cpu.period", check: between(1000, 1000000)},
	{Path: "linux.resources.cpu.realtimeRuntime", Refused: onlyV1},
	{Path: "linux.resources.cpu.realtimePeriod", Refused: onlyV1},
	{Path: "linux.resources.cpu.cpus", check: checkCPUList},
	{Path: "linux.resources.cpu.mems", check: checkCPUList},
	{Path: "linux.resources.cpu.idle", Refused: ignored},
	{Path: "linux.resources.pids.limit", check: checkPids, Note: "1 at least, or -1"},
	{Path: "linux.resources.blockIO.weight", check: between(10, 1000)},
	{Path: "linux.resources.blockIO.leafWeight", Refused: onlyV1},
	{Path: "linux.resources.blockIO.weightDevice", Refused: onlyV1},
	{Path: "linux.resources.blockIO.throttleReadBpsDevice"},
	{Path: "linux.resources.blockIO.throttleWriteBpsDevice"},
	{Path: "linux.resources.blockIO.throttleReadIOPSDevice"},
	{Path: "linux.resources.blockIO.throttleWriteIOPSDevice"},
	{Path: "linux.resources.hugepageLimits[].pageSize", check: checkPageSize},
	{Path: "linux.resources.hugepageLimits[].limit"},
	{Path: "linux.resources.network", Refused: onlyV1},
	{Path: "linux.resources.rdma", Refused: ignored},
	{Path: "linux.resources.unified", check: checkUnified, Note: "files of the control group, version 2"},
	{Path: "linux.cgroupsPath", Refused: ownGroup},
	{Path: "linux.namespaces[].type", check: checkNamespace,
		Note: "mount, pid, ipc and uts are needed; network and cgroup may be left out"},
	{Path: "linux.namespaces[].path", Refused: "Strata joins no existing namespace"},
	{Path: "linux.devices[].path", check: checkDevicePath, Note: "below /dev"},
	{Path: "linux.devices[].type", check: oneOf("b", "c", "u", "p")},
	{Path: "linux.devices[].major", check: between(0, 1<<12-1)},
	{Path: "linux.devices[].minor", check: between(0, 1<<20-1)},
	{Path: "linux.devices[].fileMode", check: between(0, 0o777)},
	{Path: "linux.devices[].uid"},
	{Path: "linux.devices[].gid"},
	{Path: "linux.netDevices", Refused: ignored},
	{Path: "linux.seccomp.listenerPath", Refused: "nobody would hear what a filter reports"},
	{Path: "linux.seccomp.listenerMetadata", Refused: "nobody would hear what a filter reports"},
	{Path: "linux.seccomp", check: checkSeccompValue, Note: "without the action SCMP_ACT_NOTIFY"},
	{Path: "linux.rootfsPropagation", check: oneOf("private", "rprivate"),
		Note: "private: what is mounted in the machine later is not seen"},
	{Path: "linux.maskedPaths", check: checkPaths},
	{Path: "linux.readonlyPaths", check: checkPaths},
	{Path: "linux.mountLabel", Refused: noProfile},
	{Path: "linux.intelRdt", Refused: ignored},
	{Path: "linux.memoryPolicy", Refused: ignored},
	{Path: "linux.personality.domain", check: oneOf("LINUX", "LINUX32")},
	{Path: "linux.personality.flags", Refused: "no flag is defined"},
	{Path: "linux.timeOffsets", Refused: ignored},

	{Path: "solaris", Refused: otherSystem},
	{Path: "windows", Refused: otherSystem},
	{Path: "vm", Refused: "the VM is Strata's to start; say what it needs with strata.VMOptions"},
	{Path: "zos", Refused: otherSystem},
	{Path: "freebsd", Refused: otherSystem},
}

// rows is the table by path.
var rows = func() map[string]*Field {
	m := map[string]*Field{}
	for i := range fields {
		m[fields[i].Path] = &fields[i]
	}
	return m
}()
