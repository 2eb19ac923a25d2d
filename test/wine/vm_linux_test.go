package winetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// need reads the contents of a program that must be installed.
func need(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: apt-get install %s", err, pkg)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestWineRealVM runs strata.exe with a real VM behind the service: layers that it made itself are
// mounted by a Linux kernel, and a program runs in them.
func TestWineRealVM(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "qemu-img", "qemu-utils")
	need(t, "mkfs.ext4", "e2fsprogs")
	busybox := need(t, "busybox", "busybox-static")
	real := &realVM{t: t, image: bootimagetest.Image(t), handles: map[hcs.Handle]string{}}
	leaktest.Check(t)
	p := newProgram(t, standin.ServerOptions{
		Service: hcstest.Options{Exec: real.exec},
		Systems: func(s *hcstest.Service) hcs.API { real.Service = s; return real },
	})
	t.Cleanup(real.abandon)
	p.files(map[string]string{
		"base.tar": string(treetest.Programs(t, map[string]string{"bin/": "", "bin/busybox": busybox,
			"etc/": "", "etc/motd": "base", "etc/issue": "base"})),
		"app.tar": string(treetest.Programs(t, map[string]string{"etc/": "", "etc/motd": "app", "etc/.wh.issue": ""})),
	})
	if err := os.Mkdir(filepath.Join(p.folder, "boot"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"kernel": real.image.Kernel, "initrd.img": real.image.Initrd} {
		if err := os.Symlink(file, filepath.Join(p.folder, "boot", name)); err != nil {
			t.Fatal(err)
		}
	}
	const root = "/run/gcs/c/web/rootfs"
	program := func(shell string) []string {
		return []string{"exec", "-i", "--env", "A=b c", "web", "/bin/busybox", "sh", "-c", shell}
	}
	mount := command{args: []string{"mount", "--scratch", "scratch", "web", `layers\app`, `layers\base`},
		want: []string{"web: 2 layers at " + root}}
	p.run(
		command{args: []string{"import", "base.tar", `layers\base`}},
		command{args: []string{"import", "--parent", `layers\base`, "app.tar", `layers\app`}},
		command{args: []string{"scratch", "create", "--size", "64M", "scratch"}, want: []string{"sandbox.vhdx", "64"}},
		command{args: []string{"vm", "start"}, want: []string{"default: ready in "}},
		mount, // the guest formats the scratch
		command{args: program(`read word; busybox cat /etc/motd; echo $A; echo $word > /note; echo oops >&2; exit 7`),
			stdin: "kept\n",
			want:  []string{"app", "b c", "oops"}, code: 7},
		command{args: []string{"exec", "--in-vm", "--", root + "/bin/busybox", "cat", root + "/note"},
			want: []string{"kept"}},
		command{args: []string{"recover"}, want: []string{"default: in order, 1 container"}},
		command{args: []string{"unmount", "web"}, want: []string{"web: unmounted"}},
		command{args: []string{"exec", "--in-vm", "--", root + "/bin/busybox", "true"}, code: 125},
		mount, // what was written is on the scratch, whose file was free to be opened again
		command{args: program(`busybox cat /note; test ! -e /etc/issue`), want: []string{"kept"}},
		command{args: []string{"unmount", "web"}, want: []string{"web: unmounted"}},
	)
	real.empty()
	p.run(command{args: []string{"vm", "stop"}, want: []string{"default: stopped"}})
	p.clean()
}
