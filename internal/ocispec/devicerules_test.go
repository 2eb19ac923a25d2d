package ocispec

import (
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// deviceRules are the rules of a text: whether each allows, the type, the numbers or "-", the access.
func deviceRules(text string) (rules []specs.LinuxDeviceCgroup) {
	for rule := range strings.SplitSeq(text, ",") {
		f := strings.Fields(rule)
		r := specs.LinuxDeviceCgroup{Allow: f[0] == "allow", Type: f[1], Access: f[4]}
		for i, to := range []**int64{&r.Major, &r.Minor} {
			if n, err := strconv.ParseInt(f[2+i], 10, 64); err == nil {
				*to = &n
			}
		}
		rules = append(rules, r)
	}
	return rules
}

// TestDeviceRules: rules that do what they say pass; others are errors that name theirs.
func TestDeviceRules(t *testing.T) {
	for rules, want := range map[string]string{
		"deny a - - rwm, allow c 120 - r, deny c 121 7 w, deny c 120 7 w, deny a - - rwm, deny c 120 - r": "",
		"allow c 120 -1 rw, allow c 1 3 r, deny b 120 - rw, deny c 10 229 rwm":                            "",
		"deny a - - rwm, allow c 120 - rw, deny c 120 7 w":                                                "[2]: a denial of what",
		"allow a - - rwm, deny b 8 0 rwm":                                                                 "[1]: a denial of what",
		"deny c 1 - r":                                                                                    "[0]: a denial of devices that every",
		"allow a 120 - rwm":                                                                               "[0]: a rule of all types is one of all",
		"allow b 8 0 r, deny a - - w":                                                                     "[1]: a rule of all types is one of all",
		"deny c 120 - m":                                                                                  "[0]: making nodes is never denied",
	} {
		s := valid()
		s.Linux.Resources.Devices = deviceRules(rules)
		err := Check(s)
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.Contains(err.Error(), "linux.resources.devices"+want)) {
			t.Errorf("%s: %v, want %q", rules, err, want)
		}
	}
}
