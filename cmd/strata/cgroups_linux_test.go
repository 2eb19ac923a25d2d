package main

import (
	"archive/tar"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestOtherCgroups: where nothing keeps a program from making user and cgroup namespaces of its own, it sees the cgroup
// of its container in each hierarchy, and no other process: those outside have the number 0.
func TestOtherCgroups(t *testing.T) {
	need(t, "unshare", "util-linux")
	c, root := onThisSystem(t)
	link := func(name string) treetest.Entry {
		return treetest.Entry{Name: name, Type: tar.TypeSymlink, Link: "usr/" + name}
	}
	const try = `b=/bin/busybox
for kind in cgroup2 memory pids freezer; do
  $b mkdir -p /tmp/c
  if [ $kind = cgroup2 ]; then mount="/usr/bin/mount -t cgroup2"; else mount="/usr/bin/mount -t cgroup -o $kind"; fi
  /usr/bin/unshare -UrmC $b sh -c "$mount none /tmp/c && b=$b && echo $kind: \$(\$b grep -c '^0\$' /tmp/c/cgroup.procs) &&
    \$b mkdir /tmp/c/left"
done 2>/dev/null
echo "end: "`
	got := c.facts(root(link("lib"), link("lib64"), treetest.Entry{Name: "tmp/"}), try,
		"--security-opt", "seccomp=unconfined", "-v", "/usr:/usr:ro")
	if _, ok := got["cgroup2"]; !ok {
		t.Errorf("no hierarchy is mounted, where that is tried: %v", got)
	}
	for kind, others := range got {
		if others != "0" && kind != "end" {
			t.Errorf("%s: %s processes are seen that are not the container's", kind, others)
		}
	}
}
