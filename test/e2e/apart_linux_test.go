package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// imageOf creates a layer with busybox, the folders and entries given.
func imageOf(t testing.TB, folders []string, entries ...tar.Header) layers.Layer {
	t.Helper()
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range append([]string{"bin"}, folders...) {
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg}, busybox)
	for _, program := range []string{"sh", "cat", "dd", "ls", "mknod", "kill", "mkdir", "grep", "mount", "umount", "sleep",
		"true"} {
		add(tar.Header{Name: "bin/" + program, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	for _, h := range entries {
		add(h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := layers.Layer{Folder: filepath.Join(t.TempDir(), "layer")}
	if _, err := layerdir.Convert(t.Context(), layerdir.Options{Tar: &buf, Dir: l.Folder}); err != nil {
		t.Fatal(err)
	}
	return l
}

// blockNodes are nodes of every block device that a guest may have: disks and their partitions, persistent memory
// (whose numbers are given out as they come), loops and device-mapper devices.
func blockNodes() (nodes []tar.Header, numbers []string) {
	add := func(major, minor int64) {
		nodes = append(nodes, tar.Header{Name: fmt.Sprintf("nodes/%d-%d", major, minor), Typeflag: tar.TypeBlock,
			Mode: 0o666, Devmajor: major, Devminor: minor})
		numbers = append(numbers, fmt.Sprintf("%d %d", major, minor))
	}
	for minor := range int64(8) {
		add(8, minor*16)
	}
	for major := int64(252); major < 260; major++ {
		add(major, 0)
		add(major, 1)
	}
	return nodes, numbers
}

var usual = []string{"proc", "dev", "sys", "tmp", "etc", "run"}

// guestFile reads a file of the VM itself, by the busybox of a container's root.
func guestFile(t testing.TB, vm *uvm.UtilityVM, m *layers.Mounted, path string) string {
	t.Helper()
	var out bytes.Buffer
	p, err := vm.Exec(t.Context(), vmm.ProcessSpec{Args: []string{m.Root + "/bin/busybox", "cat", path}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if code, err := p.Wait(t.Context()); err != nil || code != 0 {
		t.Fatalf("cat %s in the VM: %d, %v", path, code, err)
	}
	return out.String()
}

// TestRealContainersAreApart: a container cannot reach the disks, files and processes of another one in the same VM,
// nor what the whole VM depends on, whatever its image holds and its root tries.
func TestRealContainersAreApart(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	victim := mount(t, layers.Request{VM: vm, ID: "victim", Layers: []layers.Layer{imageOf(t, usual)},
		Scratch: scratch(t)})
	nodes, numbers := blockNodes()
	attacker := mount(t, layers.Request{VM: vm, ID: "attacker", Scratch: scratch(t),
		Layers: []layers.Layer{imageOf(t, append(usual, "nodes"), nodes...)}})
	sh(t, victim, "echo top-secret >/secret")
	started, pipe := io.Pipe()
	never, held := io.Pipe() // the shell waits for a line, with no program of its own that would outlive it
	defer held.Close()
	p, err := victim.Exec(t.Context(), vmm.ProcessSpec{Env: []string{"PATH=/bin"}, Stdin: never, Stdout: pipe,
		Args: []string{"/bin/sh", "-c", "echo ready; read line", "top-secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := io.ReadFull(started, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	pattern := guestFile(t, vm, victim, "/proc/sys/kernel/core_pattern")

	// Each prints what it reached, and nothing where all is well.
	for name, script := range map[string]string{
		"nodes in the image": `for n in /nodes/*; do dd if=$n of=/dev/null bs=512 count=1 2>/dev/null && echo $n; done`,
		"nodes made": `mkdir -p /made /dev/made
			while read a b; do for d in /made /tmp /dev /dev/shm /run; do
				mknod $d/n$a-$b b $a $b 2>/dev/null || continue
				dd if=$d/n$a-$b of=/dev/null bs=512 count=1 2>/dev/null && echo $d/n$a-$b
			done; done <<-END
			` + strings.Join(numbers, "\n") + "\nEND\n",
		"memory":    `for f in /dev/mem /dev/kmem /dev/port /proc/kcore /dev/kmsg; do dd if=$f of=/dev/null bs=1 count=1 2>/dev/null | grep . && echo $f; [ -s $f ] && echo $f; done`,
		"processes": `for p in /proc/[0-9]*; do grep -q top-secret $p/cmdline 2>/dev/null && [ $p != /proc/$$ ] && echo $p; done; ls /proc | grep -c '^[0-9]' | grep -v '^[1-6]$'`,
		"files": `grep -e victim -e /run/mounts -e /run/gcs /proc/self/mountinfo | grep -v ' / / '
			for d in /run/gcs /run/mounts /proc/1/root/run/gcs /proc/1/root/secret /lib/modules /init; do [ -e $d ] && echo $d; done`,
		"settings": `for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hostname /proc/sys/vm/panic_on_oom; do
			(echo '|/bin/true' >$f) 2>/dev/null && echo $f; done`,
		"sysrq":   `(echo h >/proc/sysrq-trigger) 2>/dev/null && echo written`,
		"sysfs":   `(echo 1 >/sys/kernel/mm/ksm/run) 2>/dev/null && echo ksm; for f in /sys/class/scsi_host/*/scan /sys/block/*/device/delete; do (echo 1 >$f) 2>/dev/null && echo $f; done`,
		"cgroups": `for f in cgroup.kill cgroup.procs cgroup.freeze; do (echo 0 >/sys/fs/cgroup/$f) 2>/dev/null && echo $f; done; mkdir /sys/fs/cgroup/mine 2>/dev/null && echo made`,
		"mounts":  `for t in proc sysfs devtmpfs cgroup2; do mount -t $t x /tmp 2>/dev/null && echo $t; done; umount /proc/sys 2>/dev/null && echo unmounted; mount -o remount,rw /proc/sys 2>/dev/null && echo remounted`,
	} {
		if got := strings.TrimSpace(sh(t, attacker, script+"\ntrue")); got != "" {
			t.Errorf("%s: it reached %s", name, got)
		}
	}
	// It takes its own shell with it.
	if _, err := attacker.Run(t.Context(), vmm.ProcessSpec{Env: []string{"PATH=/bin"}, Args: []string{"/bin/kill", "-9",
		"-1"}}); err != nil {
		t.Error(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = p.Wait(t.Context())
	}()
	if got := sh(t, victim, "cat /secret"); got != "top-secret\n" {
		t.Errorf("the victim's file holds %q", got)
	}
	select {
	case <-ended:
		t.Error("the victim's program has ended")
	case <-time.After(100 * time.Millisecond): // it would have been noticed by the command before
	}
	if got := guestFile(t, vm, victim, "/proc/sys/kernel/core_pattern"); got != pattern {
		t.Errorf("core_pattern is %q, was %q", got, pattern)
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	<-ended
	release(t, attacker)
	release(t, victim)
	empty(t, vm)
}

// TestRealLinkedSystemDirs: an image in which a folder of the kernel's file systems leads elsewhere gets none of them
// unmasked there.
func TestRealLinkedSystemDirs(t *testing.T) {
	leaktest.Check(t)
	vm, _ := startVM(t)
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	for name, image := range map[string]layers.Layer{
		"no link":       imageOf(t, append(usual, "x")),
		"proc over dev": imageOf(t, []string{"dev", "sys", "x"}, link("proc", "/dev/l"), link("dev/l", "/x")),
		"proc":          imageOf(t, []string{"dev", "sys", "x"}, link("proc", "/x")),
		"sys":           imageOf(t, []string{"dev", "proc", "x"}, link("sys", "/x")),
		"sys over dev":  imageOf(t, []string{"dev", "proc", "x"}, link("sys", "/dev/l"), link("dev/l", "/x")),
		"dev":           imageOf(t, []string{"proc", "sys", "x"}, link("dev", "/x")),
		"dev over proc": imageOf(t, []string{"proc", "sys", "x"}, link("dev", "/proc/l"), link("proc/l", "/x")),
	} {
		t.Run(name, func(t *testing.T) {
			m := mount(t, layers.Request{VM: vm, ID: "links", Layers: []layers.Layer{image}, Scratch: scratch(t)})
			defer release(t, m)
			pattern := guestFile(t, vm, m, "/proc/sys/kernel/core_pattern")
			var out bytes.Buffer
			_, err := m.Run(t.Context(), vmm.ProcessSpec{Env: []string{"PATH=/bin"}, Stdout: &out, Args: []string{"/bin/sh", "-c", `
				for d in /proc /x; do
					for f in sys/kernel/core_pattern sysrq-trigger; do
						[ -e $d/$f ] && (echo '|/bin/true' >$d/$f) 2>/dev/null && echo $d/$f
					done
					[ -s $d/kcore ] && echo $d/kcore
				done
				f=kernel/mm/ksm/run
				for d in /sys /x; do [ -e $d/$f ] && (echo 1 >$d/$f) 2>/dev/null && echo $d/$f; done
				true`}})
			if err != nil && !errors.Is(err, vmm.ErrGone) && name != "no link" {
				t.Logf("refused: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(out.String()); got != "" {
				t.Errorf("it reached %s", got)
			}
			if got := guestFile(t, vm, m, "/proc/sys/kernel/core_pattern"); got != pattern {
				t.Errorf("core_pattern is %q, was %q", got, pattern)
			}
		})
	}
	empty(t, vm)
}
