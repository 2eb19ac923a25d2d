package ocispec

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MinMemory is the minimum memory limit in bytes: with less, no program can be started.
const MinMemory = 6 << 20

// between accepts numbers from low to high.
func between(low, high int64) func(reflect.Value) error {
	return func(v reflect.Value) error {
		fits := false
		if v.CanInt() {
			fits = v.Int() >= low && v.Int() <= high
		} else {
			fits = v.Uint() <= uint64(high) && (low < 0 || v.Uint() >= uint64(low))
		}
		if !fits {
			return fmt.Errorf("%v: use %d to %d", v.Interface(), low, high)
		}
		return nil
	}
}

// atMost bounds the length of a list.
func atMost(n int) func(reflect.Value) error {
	return func(v reflect.Value) error {
		if v.Len() > n {
			return fmt.Errorf("it has %d entries, and may have %d", v.Len(), n)
		}
		return nil
	}
}

// oneOf accepts the strings listed.
func oneOf(list ...string) func(reflect.Value) error {
	return func(v reflect.Value) error {
		if !slices.Contains(list, v.String()) {
			return fmt.Errorf("%q: use one of %s", v.String(), strings.Join(list, ", "))
		}
		return nil
	}
}

func matching(re, what string) func(reflect.Value) error {
	compiled := regexp.MustCompile(`^(?:` + re + `)$`)
	return func(v reflect.Value) error {
		if !compiled.MatchString(v.String()) {
			return fmt.Errorf("%q is no %s", v.String(), what)
		}
		return nil
	}
}

func isFalse(v reflect.Value) bool { return !reflect.Indirect(v).Bool() }

func isTrue(v reflect.Value) bool { return reflect.Indirect(v).Bool() }

var (
	checkVersion  = matching(`1\.[0-9]{1,3}\.[0-9]{1,3}([-+].*)?`, "version that Strata knows; use 1.0.2")
	checkHostname = matching(`[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`, "host name")
	checkAccess   = matching(`[rwm]{1,3}`, "access to a device; use some of r, w and m")
	checkCPUList  = matching(`[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*`, "list of numbers such as 0-2,5")
	checkPageSize = matching(`[0-9]{1,9}[KMG]B`, "size of pages such as 2MB")
)

func checkMemory(v reflect.Value) error {
	if n := v.Int(); n != -1 && n < MinMemory {
		return fmt.Errorf("%d bytes: use %d at least, or -1 for no limit", n, MinMemory)
	}
	return nil
}

func checkQuota(v reflect.Value) error {
	if n := v.Int(); n != -1 && n < 1000 {
		return fmt.Errorf("%d microseconds: use 1000 at least, or -1 for no limit", n)
	}
	return nil
}

func checkPids(v reflect.Value) error {
	if n := v.Int(); n != -1 && (n < 1 || n > 1<<22) {
		return fmt.Errorf("%d processes: use 1 to %d, or -1 for no limit", n, 1<<22)
	}
	return nil
}

func checkEnv(v reflect.Value) error {
	for i := range v.Len() {
		if key, _, ok := strings.Cut(v.Index(i).String(), "="); !ok || key == "" {
			return fmt.Errorf("%q: write KEY=VALUE", v.Index(i).String())
		}
	}
	return nil
}

func checkPath(v reflect.Value) error { return absolutePath(v.String()) }

func checkPaths(v reflect.Value) error {
	for i := range v.Len() {
		if err := absolutePath(v.Index(i).String()); err != nil {
			return err
		}
	}
	return nil
}

// absolutePath returns an error unless p is absolute and has no "..".
func absolutePath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("%q: give an absolute path", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return fmt.Errorf("%q: give a path without \"..\"", p)
	}
	return nil
}

// cleanPath returns the absolute, clean form of a path.
func cleanPath(p string) string { return path.Clean("/" + p) }

func checkRootPath(v reflect.Value) error {
	if p := v.String(); p != "rootfs" {
		return fmt.Errorf("%q: %w: the root is the one that Strata mounts; write \"rootfs\"", p, ErrRefused)
	}
	return nil
}

func checkDevicePath(v reflect.Value) error {
	if err := absolutePath(v.String()); err != nil {
		return err
	}
	if p := cleanPath(v.String()); !strings.HasPrefix(p, "/dev/") {
		return fmt.Errorf("%q: devices are below /dev", p)
	}
	return nil
}

func checkCapabilities(v reflect.Value) error {
	for i := range v.Len() {
		if name := v.Index(i).String(); !slices.Contains(capabilities, name) {
			like := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
			return fmt.Errorf("%q: there is no such capability%s", name, closest(like))
		}
	}
	return nil
}

// rlimits are the rlimits of Linux.
var rlimits = []string{
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK",
	"RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
	"RLIMIT_SIGPENDING", "RLIMIT_STACK",
}

func checkRlimit(v reflect.Value) error {
	l := v.Interface().(specs.POSIXRlimit)
	switch {
	case !slices.Contains(rlimits, l.Type):
		return fmt.Errorf("%q: there is no such limit", l.Type)
	case l.Soft > l.Hard:
		return fmt.Errorf("%s: the soft limit %d is more than the hard one, %d", l.Type, l.Soft, l.Hard)
	}
	return nil
}

func checkNamespace(v reflect.Value) error {
	switch specs.LinuxNamespaceType(v.String()) {
	case specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace,
		specs.CgroupNamespace:
		return nil
	case specs.UserNamespace:
		return fmt.Errorf("%q: %w: %s", v.String(), ErrRefused, mapped)
	case specs.TimeNamespace:
		return fmt.Errorf("%q: %w: %s", v.String(), ErrRefused, ignored)
	}
	return fmt.Errorf("%q: there is no such namespace", v.String())
}

// runtimeAnnotations are the prefixes of annotations that change what the runtime or the host does outside the
// container; they may come from a spec or an image's labels.
var runtimeAnnotations = []string{"run.oci.", "org.criu.", "org.systemd.property.", "module.wasm.", "io.microsoft."}

// PassedOn reports whether an annotation has no meaning for runtimes and for Strata, and so is passed on.
func PassedOn(key string) bool {
	meant := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
	return key != "" && key != EtcAnnotation && key != InitAnnotation && !slices.ContainsFunc(runtimeAnnotations, meant)
}

func checkAnnotations(v reflect.Value) error {
	annotations, _ := v.Interface().(map[string]string)
	if _, err := EtcOf(annotations); err != nil {
		return err
	}
	if v, ok := annotations[InitAnnotation]; ok && v != "true" && v != "false" {
		return fmt.Errorf("%q: %.20q: give true or false", InitAnnotation, v)
	}
	for k := range annotations {
		if k != EtcAnnotation && k != InitAnnotation && !PassedOn(k) {
			return fmt.Errorf("%q: %w: it would change what the runtime does", k, ErrRefused)
		}
	}
	return nil
}

// ipcSysctls are the sysctls that are per IPC namespace.
var ipcSysctls = []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
	"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}

// sysctlName returns a sysctl's name with dots instead of slashes.
func sysctlName(key string) string { return strings.ReplaceAll(key, "/", ".") }

var sysctlKey = regexp.MustCompile(`^[a-z][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)+$`)

func checkSysctls(v reflect.Value) error {
	for k := range v.Seq2() {
		key := sysctlName(k.String())
		own := strings.HasPrefix(key, "net.") || strings.HasPrefix(key, "fs.mqueue.") || slices.Contains(ipcSysctls, key)
		switch {
		case !sysctlKey.MatchString(k.String()):
			return fmt.Errorf("%q is no name of a setting", k.String())
		case !own:
			return fmt.Errorf("%q: %w: it is not the container's own, and would be changed for all", key, ErrRefused)
		}
	}
	return nil
}

var unifiedKey = regexp.MustCompile(`^[a-z]+\.[A-Za-z0-9_.]+$`)

func checkUnified(v reflect.Value) error {
	for k := range v.Seq2() {
		key := k.String()
		if !unifiedKey.MatchString(key) || strings.HasPrefix(key, "cgroup.") || strings.Contains(key, "..") {
			return fmt.Errorf("%q is no limit of a control group", key)
		}
	}
	return nil
}

func checkSeccompValue(v reflect.Value) error {
	return checkSeccomp(ptr(v.Interface().(specs.LinuxSeccomp)))
}

func checkSeccomp(s *specs.LinuxSeccomp) error {
	if err := checkAction("defaultAction", s.DefaultAction, s.DefaultErrnoRet); err != nil {
		return err
	}
	for _, a := range s.Architectures {
		if !seccompArch.MatchString(string(a)) {
			return fmt.Errorf("architectures: %q: there is no such architecture", a)
		}
	}
	for _, f := range s.Flags {
		if f != specs.LinuxSeccompFlagLog && f != specs.LinuxSeccompFlagSpecAllow {
			return fmt.Errorf("flags: %q: %w: %s", f, ErrRefused, ignored)
		}
	}
	for i, call := range s.Syscalls {
		where := fmt.Sprintf("syscalls[%d]", i)
		if len(call.Names) == 0 || slices.Contains(call.Names, "") {
			return fmt.Errorf("%s.names: a name is missing", where)
		}
		if err := checkAction(where+".action", call.Action, call.ErrnoRet); err != nil {
			return err
		}
		for j, a := range call.Args {
			if a.Index > 5 {
				return fmt.Errorf("%s.args[%d].index: %d: a system call has 6 arguments, from 0", where, j, a.Index)
			}
			if !slices.Contains(seccompOperators, a.Op) {
				return fmt.Errorf("%s.args[%d].op: %q: there is no such operator", where, j, a.Op)
			}
		}
	}
	if s.ListenerPath != "" || s.ListenerMetadata != "" {
		return fmt.Errorf("listenerPath: %w: nobody would hear what the filter reports", ErrRefused)
	}
	return nil
}

var (
	seccompArch    = regexp.MustCompile(`^SCMP_ARCH_[A-Z0-9_]{1,20}$`)
	seccompActions = []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap,
		specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog}
	seccompOperators = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
)

func checkAction(where string, a specs.LinuxSeccompAction, errno *uint) error {
	switch {
	case a == "":
		return fmt.Errorf("%s: it is missing", where)
	case a == specs.ActNotify:
		return fmt.Errorf("%s: %q: %w: nobody would hear what the filter reports", where, a, ErrRefused)
	case !slices.Contains(seccompActions, a):
		return fmt.Errorf("%s: %q: there is no such action", where, a)
	case errno != nil && *errno > 4095:
		return errors.New(where + ": the error number is more than 4095")
	}
	return nil
}
