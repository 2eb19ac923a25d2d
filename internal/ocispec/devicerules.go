package ocispec

import (
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// everyDevice are the major and minor numbers that every container may open, because runtimes add rules for them. -1
// matches any number.
var everyDevice = [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}}

// checkDeviceRules returns an error, and the index of the rule, for a rule that would not have its exact effect: one
// that allows more, or denies what stays allowed. cgroup v1 ignores a denial of a part of an allowed range, and with
// cgroup v2 crun reorders the rules.
func checkDeviceRules(rules []specs.LinuxDeviceCgroup) (int, error) {
	var allowed []specs.LinuxDeviceCgroup
	for _, d := range everyDevice {
		allowed = append(allowed, specs.LinuxDeviceCgroup{Type: "c", Major: &d[0], Minor: &d[1], Access: "rw"})
	}
	always := len(allowed)
	for i, r := range rules {
		every := anyNumber(r.Major) && anyNumber(r.Minor) && opens(r.Access) == "rw"
		switch {
		case anyType(r) && !every: // some kernels would ignore all but the type
			return i, errors.New("a rule of all types is one of all devices and rwm: give the type b or c")
		case r.Allow:
			allowed = append(allowed, r)
		case anyType(r):
			allowed = allowed[:always] // all other devices are denied
		case opens(r.Access) == "":
			return i, errors.New("making nodes is never denied to those who have the capability, only opening them: " +
				"leave CAP_MKNOD away")
		default:
			for j, a := range allowed {
				switch {
				case !overlap(r, a):
				case j < always:
					return i, fmt.Errorf("a denial of devices that every container has: %w", ErrRefused)
				default:
					return i, fmt.Errorf("a denial of what a rule before it allows: %w; allow the rest instead", ErrRefused)
				}
			}
		}
	}
	return 0, nil
}

// overlap reports whether two rules apply to the same access of the same device.
func overlap(a, b specs.LinuxDeviceCgroup) bool {
	same := func(x, y *int64) bool { return anyNumber(x) || anyNumber(y) || *x == *y }
	return (anyType(a) || anyType(b) || a.Type == b.Type) && same(a.Major, b.Major) && same(a.Minor, b.Minor) &&
		strings.ContainsAny(opens(a.Access), opens(b.Access))
}

func anyType(r specs.LinuxDeviceCgroup) bool { return r.Type == "" || r.Type == "a" }

func anyNumber(n *int64) bool { return n == nil || *n < 0 }

// opens returns the ways of access, of r and w, that a rule applies to; an empty access means all.
func opens(access string) (ways string) {
	for _, way := range []string{"r", "w"} {
		if access == "" || strings.Contains(access, way) {
			ways += way
		}
	}
	return ways
}
