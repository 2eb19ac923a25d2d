package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// processBox is a command line with a root to run programs of busybox in, on this system.
func processBox(t *testing.T) (c cliBox, root string) {
	t.Helper()
	treetest.Need(t, os.Geteuid() == 0, "root, to mount", "run the test as root")
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("runc"); err != nil {
		need(t, "crun", "crun")
	}
	init := bootimagetest.Strata(t)
	leaktest.Check(t)
	work := t.TempDir()
	root = filepath.Join(work, "root.tar")
	entries := []treetest.Entry{{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)},
		{Name: "bin/sh", Mode: 0o755, Body: "#!/bin/busybox sh\nexec /bin/busybox sh \"$@\"\n"}}
	if err := os.WriteFile(root, treetest.Tar(t, entries...), 0o644); err != nil {
		t.Fatal(err)
	}
	return cliBox{t: t, strata: init, state: filepath.Join(work, "state")}, root
}

// facts runs a script, of which each line of output is "key: value", in a container of this system.
func (c cliBox) facts(root, script string, flags ...string) map[string]string {
	c.t.Helper()
	return c.factsWith(root, script, append([]string{"--isolation=process"}, flags...)...)
}

// factsWith is facts in a container that flags describe.
func (c cliBox) factsWith(root, script string, flags ...string) map[string]string {
	c.t.Helper()
	args := append(append([]string{"run"}, flags...), root)
	if script != "" {
		args = append(args, "--", "/bin/busybox", "sh", "-c", script)
	}
	cmd := c.cmd(args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("strata %q: %v\n%s", args, err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		got[key] = strings.Join(strings.Fields(value), " ")
	}
	return got
}

// compare reports facts that are not as they should be; others do not matter.
func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	some := map[string]string{}
	for key := range want {
		some[key] = got[key]
	}
	if d := cmp.Diff(want, some); d != "" {
		t.Error(d)
	}
}

// script is what a program in a container finds: its rights, whether the masks hold, and whether ways out are open.
const script = `export b=/bin/busybox
$b grep -E '^(Uid|Gid|Cap|NoNewPrivs|Seccomp:)' /proc/self/status
for p in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi \
  /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware; do
  if [ -d $p ]; then echo "masked $p: $($b ls -A $p | $b wc -l)"
  elif [ -e $p ]; then echo "masked $p: $($b head -c 10 $p | $b wc -c)"; fi
done
$b awk '{print "mount " $5 ": " $6}' /proc/self/mountinfo | $b grep -E '^mount /((proc|dev|sys)(/(bus|fs|irq|sys|pts|shm|mqueue))?)?:'
try() { key=$1; shift; if "$@" >/dev/null 2>&1; then echo "$key: open"; else echo "$key: shut"; fi; }
try core_pattern $b sh -c 'echo x >/proc/sys/kernel/core_pattern'
try sysrq $b sh -c 'echo h >/proc/sysrq-trigger'
try mount $b mount -t tmpfs none /mnt
try remount $b mount -o remount,rw /sys
try unshare $b unshare -m $b true
try null $b sh -c '$b mknod /n c 1 3 && $b head -c 1 /n'
try disk $b sh -c '$b mknod /d b $DISK && $b head -c 1 /d'
try kmem $b sh -c '$b mknod /k c 1 1 && $b head -c 1 /k'
try cgroup $b sh -c 'for d in /sys/fs/cgroup /sys/fs/cgroup/*; do $b mkdir $d/x; [ -e $d/x/cgroup.procs ] && exit 0; done; exit 1'
try uevent $b sh -c 'echo x >/sys/kernel/uevent_helper'
try own_root $b touch /x
echo "links: $($b ls /sys/class/net | $b tr '\n' ' ')"
echo "processes: $($b ls /proc | $b grep -c '^[0-9]')"
echo "descriptors: $($b ls /proc/self/fd | $b tr '\n' ' ')"
echo "port: $($b cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
echo "hostname: $($b hostname)"
echo "home: $HOME"
`

// disk returns the numbers of a disk of this system.
func disk(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/partitions")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] != "major" && !strings.HasPrefix(f[3], "loop") {
			return f[0] + " " + f[1]
		}
	}
	t.Log("this system has no disk")
	return "8 0"
}

// TestProcessDefaults compares what a program finds that runs on this system, line by line, with what docker gives.
func TestProcessDefaults(t *testing.T) {
	c, root := processBox(t)
	checkDefaults(t, c.facts(root, script, "--id", "box1", "-e", "DISK="+disk(t)), "/proc")
}

// TestVMDefaults does so in a VM.
func TestVMDefaults(t *testing.T) {
	c, root := processBox(t)
	needVM(t, c.strata)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	checkDefaults(t, c.factsWith(root, script, "--id", "box1", "-e", "DISK=8 0"), "")
}

// checkDefaults compares what script finds with what docker gives. What is below proc, if that is not empty, says which
// folders there are to be read-only; else all that docker has so.
func checkDefaults(t *testing.T, got map[string]string, proc string) {
	t.Helper()
	want := map[string]string{
		"Uid": "0 0 0 0", "Gid": "0 0 0 0", "CapInh": "0000000000000000", "CapPrm": "00000000a80425fb",
		"CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000", "NoNewPrivs": "0",
		"Seccomp": "2", "mount /": "rw,relatime", "mount /proc": "rw,nosuid,nodev,noexec,relatime",
		"mount /dev": "rw,nosuid", "mount /dev/pts": "rw,nosuid,noexec,relatime",
		"mount /dev/shm": "rw,nosuid,nodev,noexec,relatime", "mount /dev/mqueue": "rw,nosuid,nodev,noexec,relatime",
		"mount /sys": "ro,nosuid,nodev,noexec,relatime", "core_pattern": "shut", "sysrq": "shut", "mount": "shut",
		"remount": "shut", "unshare": "shut", "disk": "shut", "kmem": "shut", "cgroup": "shut", "uevent": "shut",
		"own_root": "open", "null": "open", "links": "lo", "port": "0", "hostname": "box1", "home": "/",
		"descriptors": "0 1 2 3", // 3 is the directory that is listed
	}
	for _, dir := range []string{"bus", "fs", "irq", "sys"} {
		if proc != "" {
			if _, err := os.Stat(filepath.Join(proc, dir)); err != nil {
				continue
			}
		}
		want["mount /proc/"+dir] = "ro,relatime"
		got["mount /proc/"+dir] = strings.Replace(got["mount /proc/"+dir], "nosuid,nodev,noexec,", "", 1) // runc
	}
	masked := 0
	for key := range got {
		if strings.HasPrefix(key, "masked ") {
			masked++
			want[key] = "0"
		}
	}
	if masked < 3 {
		t.Errorf("%d of the masked paths are there: %v", masked, got)
	}
	compare(t, got, want)
}

// TestProcessFlags: each flag that is docker's does what it does there.
func TestProcessFlags(t *testing.T) {
	c, root := processBox(t)
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(t.TempDir(), "vars")
	if err := os.WriteFile(vars, []byte("\ufeffA=a\n# some\n\nB=b\nC\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		flags  []string
		script string
		want   map[string]string
	}{
		"capabilities": {[]string{"--cap-drop", "all", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges"}, script,
			map[string]string{"CapEff": "0000000000000001", "CapBnd": "0000000000000001", "NoNewPrivs": "1"}},
		"no seccomp": {[]string{"--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"}, script,
			map[string]string{"CapEff": "00000000a82425fb", "Seccomp": "0", "unshare": "open", "core_pattern": "shut"}},
		"read-only": {[]string{"--read-only", "--tmpfs", "/run:size=1m,mode=700"},
			script + "try run $b touch /run/x\n$b grep ' /run ' /proc/mounts | $b sed 's/.*size/size: /'\n",
			map[string]string{"own_root": "shut", "run": "open", "mount /": "ro,relatime", "size": "=1024k,mode=700 0 0"}},
		"limits": {[]string{"--ulimit", "nofile=100:200", "--ulimit", "core=0", "--oom-score-adj", "55", "--shm-size", "2m"},
			"echo soft: $(ulimit -n); echo hard: $(ulimit -Hn); echo core: $(ulimit -c); echo adj: $(/bin/busybox cat " +
				"/proc/self/oom_score_adj); echo shm: $(/bin/busybox df -k /dev/shm | /bin/busybox awk 'NR==2 {print $2}')",
			map[string]string{"soft": "100", "hard": "200", "core": "0", "adj": "55", "shm": "2048"}},
		"names": {[]string{"--hostname", "elsewhere", "--sysctl", "net.core.somaxconn=77", "-e", "A=b"},
			script + "echo conn: $($b cat /proc/sys/net/core/somaxconn); echo env: $A $HOSTNAME\n",
			map[string]string{"hostname": "elsewhere", "conn": "77", "env": "b elsewhere"}},
		"files of /etc": {[]string{"--hostname", "web", "--add-host", "db:10.0.0.2", "--add-host", "v6=[fd00::2]",
			"--dns", "10.0.0.53", "--dns-search", "example.org", "--dns-option", "ndots:3", "--group-add", "7"},
			"b=/bin/busybox; echo localhost: $($b grep -c '^127.0.0.1.localhost$' /etc/hosts); " +
				"echo db: $($b grep db /etc/hosts); echo v6: $($b grep v6 /etc/hosts); " +
				"echo own: $($b grep 'web$' /etc/hosts); echo name: $($b cat /etc/hostname); " +
				"echo resolver: $($b cat /etc/resolv.conf); echo groups: $($b id -G); echo x >>/etc/hosts && echo write: yes",
			map[string]string{"localhost": "1", "db": "10.0.0.2 db", "v6": "fd00::2 v6", "own": "127.0.0.1 web",
				"name": "web", "resolver": "search example.org nameserver 10.0.0.53 options ndots:3", "groups": "0 7",
				"write": "yes"}},
		"files of /etc that cannot be written": {[]string{"--read-only"},
			"echo x >>/etc/hosts || echo write: no", map[string]string{"write": "no"}},
		"a device": {[]string{"--device", "/dev/fuse:/dev/f:rw"}, script + "try fuse $b head -c 0 /dev/f\n",
			map[string]string{"fuse": "open", "kmem": "shut"}},
		"a file of variables": {[]string{"--env-file", vars, "-e", "B=over"},
			"echo vars: $A $B $C", map[string]string{"vars": "a over"}},
		"a folder": {[]string{"-v", shared + ":/data"},
			"echo read: $(/bin/busybox cat /data/file); echo new >/data/new && echo write: yes",
			map[string]string{"read": "shared", "write": "yes"}},
		"a folder, read-only": {[]string{"-v", shared + ":/data:ro"},
			"echo read: $(/bin/busybox cat /data/file); echo x >/data/x || echo write: no", map[string]string{"read": "shared",
				"write": "no"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			compare(t, c.facts(root, tt.script, tt.flags...), tt.want)
		})
	}
	if b, err := os.ReadFile(filepath.Join(shared, "new")); err != nil || string(b) != "new\n" {
		t.Errorf("what the container wrote to the folder: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(shared, "x")); err == nil {
		t.Error("the container wrote to a folder that was read-only")
	}
}

// TestProcessLimits: a container that takes more than it may is stopped, and the machine is not.
func TestProcessLimits(t *testing.T) {
	c, root := processBox(t)
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		if b, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); !strings.Contains(string(b), "memory") {
			treetest.Need(t, false, "a control group for memory", "mount cgroup2")
			return
		}
	}
	got := c.facts(root, `b=/bin/busybox; cd /sys/fs/cgroup
first() { for f in "$@"; do [ -e $f ] && $b cat $f && return; done; }
echo memory: $(first memory.max memory/memory.limit_in_bytes)
echo pids: $(first pids.max pids/pids.max)
echo cpu: $(first cpu.max cpu/cpu.cfs_quota_us)
$b head -c 100m /dev/zero | $b tail -c 90m | $b wc -c >/tmp.out 2>/dev/null
$b grep -q 94371840 /tmp.out && echo took: all || echo took: less
(i=0; while [ $i -lt 60 ]; do $b sleep 2 & i=$((i+1)); done) 2>/dev/null; echo forks: $($b ls /proc | $b grep -c '^[0-9]')
`, "-m", "32m", "--memory-swap", "32m", "--pids-limit", "40", "--cpus", "0.5")
	var forks int
	if _, err := fmt.Sscan(got["forks"], &forks); err == nil && forks > 40 {
		t.Errorf("%d processes run at once", forks)
	}
	delete(got, "forks")
	got["cpu"], _, _ = strings.Cut(got["cpu"], " ")
	if d := cmp.Diff(map[string]string{"memory": "33554432", "pids": "40", "cpu": "50000", "took": "less"}, got); d != "" {
		t.Errorf("%v: %s", slices.Sorted(maps.Keys(got)), d)
	}
}
