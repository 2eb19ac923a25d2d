package ocispec

import (
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// everyDevice is what every container may open, whatever its document says: runtimes add it. A negative number is
// any.
var everyDevice = [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}}

// checkDeviceRules refuses a rule that would allow more than it says, or denies what stays allowed, and returns its
// number. Control groups of the first version forget a denial of part of what another rule allows, and crun orders
// rules its own way for the second.
func checkDeviceRules(rules []specs.LinuxDeviceCgroup) (int, error) {
	var allowed []specs.LinuxDeviceCgroup
	for _, d := range everyDevice {
		allowed = append(allowed, specs.LinuxDeviceCgroup{Type: "c", Major: &d[0], Minor: &d[1], Access: "rw"})
	}
	always := len(allowed)
	for i, r := range rules {
		every := anyNumber(r.Major) && anyNumber(r.Minor) && opens(r.Access) == "rw"
		switch {
		case anyType(r) && !every: // of which some kernels would see the type alone
			return i, errors.New("a rule of all types is one of all devices and rwm: give the type b or c")
		case r.Allow:
			allowed = append(allowed, r)
		case anyType(r):
			allowed = allowed[:always] // all but these are denied
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

// overlap reports whether there is a way to open a device that both rules speak of.
func overlap(a, b specs.LinuxDeviceCgroup) bool {
	same := func(x, y *int64) bool { return anyNumber(x) || anyNumber(y) || *x == *y }
	return (anyType(a) || anyType(b) || a.Type == b.Type) && same(a.Major, b.Major) && same(a.Minor, b.Minor) &&
		strings.ContainsAny(opens(a.Access), opens(b.Access))
}

func anyType(r specs.LinuxDeviceCgroup) bool { return r.Type == "" || r.Type == "a" }

func anyNumber(n *int64) bool { return n == nil || *n < 0 }

// opens are the ways to open a device that a rule speaks of; no word means all.
func opens(access string) (ways string) {
	for _, way := range []string{"r", "w"} {
		if access == "" || strings.Contains(access, way) {
			ways += way
		}
	}
	return ways
}
