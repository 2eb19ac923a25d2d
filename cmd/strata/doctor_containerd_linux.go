package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

const shimName = "containerd-shim-strata-v1"

// containerdQuestions are about a host whose containerd is to run containers in VMs.
func containerdQuestions() []question {
	return []question{
		{"containerd", true, "install 2.3 or later from https://github.com/containerd/containerd/releases", askContainerd},
		{"shim", true, "make install-shim, into a folder of the PATH that containerd has", askShim},
		{"rights of containerd", true, "run containerd, and this command, as root", askRoot},
		{"shared roots", true, "sudo apt-get install qemu-system-common (Debian 13: virtiofsd); " +
			"snapshots that are no disks need it", askVirtioFS},
		{"erofs snapshotter", false, "sudo modprobe erofs", askEROFS},
		{"network of pods", false, "install CNI plugins into " + cniPlugins + " (containernetworking-plugins of Debian has them " +
			"in /usr/lib/cni) and describe a network in " + cniConfig + "; without them there are no pods", askCNI},
		{"erofs differ", false, "install erofs-utils 1.7 or later (Debian 13); without it containerd mounts layers " +
			"while it unpacks an image", askMkfs},
	}
}

// startsShims reports whether containerd of a version such as "v2.4.2" starts shims in the way that ours is started,
// which came with 2.3.
func startsShims(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor)
	return err == nil && (major > 2 || major == 2 && minor >= 3)
}

func askContainerd(ctx context.Context, e *env, cmd *cli.Command) (string, error) {
	detail, err := program("containerd", "--version")(ctx, e, cmd)
	if err != nil {
		return "", err
	}
	words := strings.Fields(detail) // PATH: containerd REPOSITORY VERSION REVISION
	if len(words) < 4 || !startsShims(words[3]) {
		return "", fmt.Errorf("%s: it is older than 2.3", detail)
	}
	return detail, nil
}

func askShim(context.Context, *env, *cli.Command) (string, error) {
	path, err := exec.LookPath(shimName)
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(resolved), "strata-init")); err != nil {
		return "", fmt.Errorf("beside %s there has to be what guests boot: %w", resolved, err)
	}
	return path, nil
}

func askRoot(context.Context, *env, *cli.Command) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("not root")
	}
	return "root", nil
}

// Where containerd's CRI plugin finds CNI plugins and networks if it is not told others.
const (
	cniPlugins = "/opt/cni/bin"
	cniConfig  = "/etc/cni/net.d"
)

func askCNI(context.Context, *env, *cli.Command) (string, error) {
	if found, err := filepath.Glob(cniPlugins + "/*"); err != nil || len(found) == 0 {
		return "", fmt.Errorf("there are no plugins in %s", cniPlugins)
	}
	found, err := filepath.Glob(cniConfig + "/*.conf*") // .conf and .conflist
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("there is no network in %s", cniConfig)
	}
	return found[0], nil
}

func askEROFS(context.Context, *env, *cli.Command) (string, error) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return "", err
	}
	if !slices.Contains(strings.Fields(string(b)), "erofs") {
		return "", errors.New("the kernel has no EROFS, by which containerd unpacks images")
	}
	return "the kernel has EROFS", nil
}

func askMkfs(ctx context.Context, _ *env, _ *cli.Command) (string, error) {
	path, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		return "", err
	}
	// Version 1.5 knows no --version; --tar came with 1.7. Either writes its help, whatever its exit code.
	out, _ := exec.CommandContext(ctx, path, "--help").CombinedOutput()
	if !strings.Contains(string(out), "--tar") {
		return "", fmt.Errorf("%s does not know --tar", path)
	}
	return path, nil
}
