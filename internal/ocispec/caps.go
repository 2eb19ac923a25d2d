package ocispec

import (
	"fmt"
	"slices"
	"strings"
)

// capabilities are all capabilities of Linux 6.1, in the order of their numbers.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// all stands for every capability in the lists of ChooseCapabilities.
const all = "ALL"

// ChooseCapabilities returns the default capabilities with those of add and without those of drop. Names may
// be written with or without "CAP_", in any case; "ALL" is every capability. What is in both lists is added:
// "drop ALL, add CHOWN" leaves CHOWN. A name that does not exist is an error.
func ChooseCapabilities(add, drop []string) ([]string, error) {
	add, err := capabilityNames("add", add)
	if err != nil {
		return nil, err
	}
	drop, err = capabilityNames("drop", drop)
	if err != nil {
		return nil, err
	}
	out := []string{}
	addAll, dropAll := slices.Contains(add, all), slices.Contains(drop, all)
	for _, c := range capabilities {
		usual := addAll || slices.Contains(defaultCapabilities, c) && !dropAll
		if slices.Contains(add, c) || usual && !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	return out, nil
}

func capabilityNames(what string, names []string) ([]string, error) {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = strings.ToUpper(name)
		if out[i] == all {
			continue
		}
		if !strings.HasPrefix(out[i], "CAP_") {
			out[i] = "CAP_" + out[i]
		}
		if !slices.Contains(capabilities, out[i]) {
			return nil, fmt.Errorf("%s capability %q: there is no such capability%s", what, name, closest(out[i]))
		}
	}
	return out, nil
}

// closest returns a hint at the capability that was probably meant.
func closest(name string) string {
	for _, c := range capabilities {
		if strings.ReplaceAll(c, "_", "") == strings.ReplaceAll(name, "_", "") {
			return "; " + c + " is one"
		}
	}
	return ""
}
