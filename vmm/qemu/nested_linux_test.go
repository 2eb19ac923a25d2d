package qemu

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/vmm"
)

// nested runs the test in a VM that has /dev/vhost-vsock, by this driver: a disk brings QEMU with all it
// needs, this test as a static program, the modules, and what the inner VM boots.
func nested(t *testing.T, img vmm.BootImage, disk string) {
	release := "/lib/modules/" + img.KernelRelease
	modules := vhostModules(t, release)
	treetest.Need(t, len(modules) > 0, "the module vhost_vsock in "+release, "a kernel that has it, such as Debian's")

	root := t.TempDir()
	test := filepath.Join(root, "vsock.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", test, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "cp", "-L", busybox, filepath.Join(root, shell)) // QEMU begins as one
	bring := append(qemuFiles(t), busybox, img.Kernel, img.Initrd, disk)
	for _, m := range modules {
		bring = append(bring, filepath.Join(release, m))
	}
	treetest.Run(t, "cp", append([]string{"-L", "--parents", "-t", root}, bring...)...)
	outer := filepath.Join(t.TempDir(), "outer.raw")
	treetest.Run(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-d", root, outer, "1G")

	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	m, err := Start(ctx, Config{Dir: t.TempDir(), ID: "outer", Kernel: img.Kernel, Initrd: img.Initrd,
		Cmdline:   img.Cmdline,
		MemoryMiB: 2048, CPUs: 2, Transport: TransportSerial, rewrite: func(args []string) []string {
			// A VMM that translates code is itself code that changes all the time.
			args[slices.Index(args, "tcg,tb-size=128")] = "tcg,tb-size=1024"
			return args
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	apply(t, m, vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Path: outer}, Mount: vmm.MappedDisk{MountPath: "/run/outer"}})

	script := "cd /run/outer; export PATH=/usr/bin; for d in dev proc sys; do .$BB mount --bind /$d $d; done\n"
	for _, m := range modules { // what is built in or loaded fails; the test tells
		script += ".$BB insmod ." + filepath.Join(release, m) + "\n"
	}
	script += "exec .$BB chroot . /vsock.test -test.run '^TestVSock$' -test.v -test.timeout " + patience.String() + "\n"
	begin := time.Now()
	var out bytes.Buffer
	p, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{"/run/outer" + busybox, "sh", "-c", script}, Stdout: &out,
		Stderr: &out,
		Env: []string{"BB=" + busybox, envKernel + "=" + img.Kernel, envInitrd + "=" + img.Initrd, envDisk + "=" + disk,
			envCmdline + "=" + strings.Join(img.Cmdline, " ")}})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(ctx)
	t.Logf("in the VM, %s:\n%s", time.Since(begin).Round(time.Second), &out)
	if err != nil || code != 0 || !strings.Contains(out.String(), "--- PASS: TestVSock ") {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// vhostModules are the files of vhost_vsock and of what it needs, in the order in which they are loaded.
func vhostModules(t *testing.T, release string) []string {
	b, err := os.ReadFile(filepath.Join(release, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		file, needs, _ := strings.Cut(line, ":")
		if strings.HasPrefix(filepath.Base(file), "vhost_vsock.ko") {
			list := append([]string{file}, strings.Fields(needs)...)
			slices.Reverse(list)
			return list
		}
	}
	return nil
}

// qemuFiles are those that a VM of this driver takes to run.
func qemuFiles(t *testing.T) []string {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{program}
	for _, word := range strings.Fields(treetest.Run(t, "ldd", program)) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	for _, pattern := range []string{"/usr/lib/*/qemu/accel-*.so", "/usr/share/*/bios-256k.bin",
		"/usr/share/qemu/kvmvapic.bin",
		"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}
