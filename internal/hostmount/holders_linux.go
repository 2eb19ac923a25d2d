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
			who = append(who, ProcessName(proc)+" by "+how)
		}
	}
	return who
}

// ProcessName returns a printable description of the process with a directory in /proc.
func ProcessName(proc string) string {
	comm, _ := os.ReadFile(proc + "/comm")
	name := strconv.Quote(strings.TrimSpace(string(comm)))
	return fmt.Sprintf("process %s (%s)", filepath.Base(proc), name[1:len(name)-1])
}

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
