package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/vmm/qemu"
)

// ask asks this host something; see question.
type ask = func(context.Context, *env, *cli.Command) (detail string, err error)

// vmms is the Debian package with the VMM of an architecture, and its program.
var vmms = map[string][2]string{
	"amd64": {"qemu-system-x86", "qemu-system-x86_64"},
	"arm64": {"qemu-system-arm", "qemu-system-aarch64"},
}

func hostQuestions() []question {
	vmm := vmms[runtime.GOARCH]
	return []question{
		{"VMM", true, "sudo apt-get install " + vmm[0], program(vmm[1], "--version")},
		{"disk tool", true, "sudo apt-get install qemu-utils", program("qemu-img", "--version")},
		{"file system tool", true, "sudo apt-get install e2fsprogs", program("mkfs.ext4", "-V")},
		{"guest kernel", true, "name one with --kernel", askKernel},
		{"hardware acceleration", false, "VMs run under software emulation, which is slower", askKVM},
		{"vsock", false,
			"guests are reached by serial ports instead, by sixteen processes at a time; or: sudo modprobe vhost_vsock",
			askVsock},
		{"layers without a VM", false, "run strata as root, or in a user namespace: unshare --map-auto -Urm strata ...",
			askHost},
		{"container runtime", true, "sudo apt-get install crun; containers need it, or runc, in VMs and without", askRuntime},
		{"container init", true, "sudo apt-get install catatonit; VMs keep containers by it, and run --init needs it",
			askPause},
		{"container networks", false, "sudo apt-get install slirp4netns; run --network user and --publish need it",
			program("slirp4netns", "--version")},
		{"volumes in VMs", false, "sudo apt-get install qemu-system-common (Debian 13: virtiofsd); run --volume needs it",
			askVirtioFS},
		{"templates of VMs", false, "remove them with: strata store gc --templates", askTemplates},
		{"memory", false, "a VM takes 256 MiB by default; --memory 128M takes less", askMemory},
	}
}

func askKernel(context.Context, *env, *cli.Command) (string, error) {
	path, release, err := bootimage.Kernel(bootimage.Options{})
	if none, ok := errors.AsType[*bootimage.NoKernelError](err); ok {
		return "", &remedyError{none.Err, none.Remedy}
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (release %s)", path, release), nil
}

func askKVM(context.Context, *env, *cli.Command) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		return "", &remedyError{err, "sudo usermod -aG kvm $USER, then log in again"}
	}
	if err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	if runtime.GOARCH != "amd64" {
		return "/dev/kvm can be opened", nil
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(string(info)) {
		if word == "vmx" || word == "svm" {
			return "/dev/kvm can be opened and the CPU can virtualise", nil
		}
	}
	return "", errors.New("/dev/kvm can be opened, but the CPU has neither vmx nor svm: such a KVM runs no stock kernel")
}

func askVsock(context.Context, *env, *cli.Command) (string, error) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	return "/dev/vhost-vsock can be opened", f.Close()
}

// askHost asks how --isolation=process and the machine "host" mount layers.
func askHost(context.Context, *env, *cli.Command) (string, error) {
	if err := hostmount.CheckOverlay(); err != nil {
		return "", err
	}
	if hostmount.CanDisks() {
		return "disks and directories can be mounted", nil
	}
	ids, err := userns.Current()
	if err != nil {
		return "", err
	}
	if ids.One {
		return "a user namespace with one id: layers are directory trees (format dir), and all files belong to root", nil
	}
	return "a user namespace: layers are directory trees (format dir)", nil
}

// askRuntime asks for the program that runs containers on this system.
func askRuntime(ctx context.Context, e *env, cmd *cli.Command) (string, error) {
	path, err := crun.Find()
	if err != nil {
		return "", err
	}
	return program(path, "--version")(ctx, e, cmd)
}

// askPause asks for the program that keeps containers in VMs.
func askPause(ctx context.Context, e *env, cmd *cli.Command) (string, error) {
	path := bootimage.FindTool("", "catatonit")
	if path == "" {
		return "", errors.New("catatonit is not found")
	}
	return program(path, "-V")(ctx, e, cmd)
}

// askVirtioFS asks for the program that serves folders of this host to VMs.
func askVirtioFS(context.Context, *env, *cli.Command) (string, error) {
	path, err := qemu.FindServer()
	if err != nil {
		return "", err
	}
	if err := qemu.CanShare(1); err != nil {
		return "", &remedyError{err, "run strata as root for run --volume"}
	}
	return path, nil
}

func askMemory(context.Context, *env, *cli.Command) (string, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			text := size(kib<<10) + " available"
			if kib < 512<<10 {
				return "", errors.New("only " + text)
			}
			return text, nil
		}
	}
	return "", errors.New("/proc/meminfo does not tell")
}

// askTemplates asks for the templates of VMs.
func askTemplates(_ context.Context, e *env, cmd *cli.Command) (string, error) {
	dir, err := e.templateCache(cmd)
	if err != nil {
		return "", err
	}
	all, err := qemu.Templates(dir)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "none; VMs boot, unless they are started with --template", nil
	}
	var bytes int64
	vms := 0
	for _, t := range all {
		bytes += t.Bytes
		vms += t.VMs
	}
	return fmt.Sprintf("%s, %s, last used %s ago, memory shared with %s", count(len(all), "template"), size(bytes),
		time.Since(all[0].Used).Round(time.Second), count(vms, "VM")), nil
}

func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// program asks for a program and what it says of its version.
func program(name string, args ...string) ask {
	return func(ctx context.Context, _ *env, _ *cli.Command) (string, error) {
		path, err := exec.LookPath(name)
		if err != nil { // not in a user's PATH on Debian
			for _, dir := range []string{"/usr/sbin", "/sbin"} {
				if p, perr := exec.LookPath(filepath.Join(dir, name)); perr == nil {
					path, err = p, nil
					break
				}
			}
		}
		if err != nil {
			return "", err
		}
		out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return path + ": " + firstLine(out), nil
	}
}

func firstLine(b []byte) string {
	for i, c := range b {
		if c == '\n' || c == '\r' {
			return string(b[:i])
		}
	}
	return string(b)
}
