package hostmount

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holders describes at most most processes that use something. skip excludes processes, by their directory in /proc;
// uses is called with the process's links in /proc, such as those in fd; other, called if no link matches, returns
// another use by a process, or "".
func Holders(most int, skip, uses func(path string) bool, other func(proc string) string) []string {
	var who []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		if len(who) >= most {
			return append(who, "and perhaps others")
		}
		if skip(proc) {
			continue
		}
		how := usedBy(proc, uses)
		if how == "" {
			how = other(proc)
		}
		if how != "" {
			// Whoever has its root directory there is in the container; others may be in a namespace of anything else.
			who = append(who, ProcessName(proc, uses(proc+"/root"))+" by "+how)
		}
	}
	return who
}

// ProcessName returns the name of a process, given its directory in /proc, in a form that can be printed. If it is
// known to be in a container that has a PID namespace, the name has its number there and ends with InContainer.
func ProcessName(proc string, inContainer bool) string {
	comm, _ := os.ReadFile(proc + "/comm")
	name := strconv.Quote(strings.TrimSpace(string(comm)))
	pid, where := filepath.Base(proc), ""
	status, _ := os.ReadFile(proc + "/status")
	if _, ids, ok := strings.Cut(string(status), "\nNSpid:"); ok {
		ids, _, _ = strings.Cut(ids, "\n")
		// The first number is that of /proc, the second the container's. The rest are of namespaces made in it.
		if all := strings.Fields(ids); inContainer && len(all) > 1 {
			pid, where = all[1], InContainer
		}
	}
	return fmt.Sprintf("process %s (%s)%s", pid, name[1:len(name)-1], where)
}

// InContainer ends the name of a process whose number is the one that it has in its container.
const InContainer = " in the container"

// usedBy returns how a process uses something by one of its links, or "".
func usedBy(proc string, uses func(link string) bool) string {
	for _, l := range [...]struct{ name, text string }{
		{"root", "root directory"}, {"cwd", "working directory"}, {"exe", "program"},
	} {
		if link := proc + "/" + l.name; uses(link) {
			target, _ := os.Readlink(link)
			return strings.TrimSpace(l.text + " " + target)
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if link := proc + "/fd/" + fd.Name(); uses(link) {
			target, _ := os.Readlink(link)
			return "open file " + target
		}
	}
	return ""
}
