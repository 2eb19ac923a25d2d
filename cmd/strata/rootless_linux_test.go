package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stratavm/strata/vmm/qemu"
)

// userScript runs a program as nobody, who has further users and groups here.
const userScript = `set -e
mount --bind "$0" /etc/subuid
mount --bind "$0" /etc/subgid
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$@"`

// nobody is the user of it.
const nobody = 65534

// TestWithoutRoot: a user who is not root runs a container in a VM, with a network, folders and a file of the host and a
// volume with a name. What is read-only is; files of the guest's users are those of the user's own range.
func TestWithoutRoot(t *testing.T) {
	c, root := processBox(t)
	needVM(t, c.strata)
	need(t, "newuidmap", "uidmap")
	if _, err := qemu.FindServer(); err != nil {
		need(t, "virtiofsd", "qemu-system-common")
	}
	work := filepath.Dir(root)
	temp := filepath.Clean(os.TempDir())
	for dir := work; dir != temp && dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // a way in
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(c.strata), 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(work, "home")
	for _, dir := range []string{"", "vol", "fixed"} {
		err := os.Mkdir(filepath.Join(home, dir), 0o700)
		if err == nil {
			err = os.Chown(filepath.Join(home, dir), nobody, nobody)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"vol/f": "of the host\n", "fixed/f": "fixed\n", "file": "alone\n",
		"ids": "65534:300000:65536\n"} {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		all := append([]string{"-m", "sh", "-c", userScript, home + "/ids", c.strata, "--state-dir", home + "/state"}, args...)
		cmd := exec.Command("unshare", all...)
		cmd.Dir, cmd.Env = home, append(os.Environ(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("run", "--network", "user", "-v", home+"/vol:/v", "-v", home+"/fixed:/ro:ro", "-v", home+"/file:/one:ro",
		"-v", "named:/n", root, "--", "/bin/busybox", "sh", "-c", `b=/bin/busybox
		$b cat /v/f /ro/f /one; echo new >/v/new; $b chown 5:6 /v/new; echo kept >/n/kept
		(echo x >/ro/f) 2>&1; (echo x >/one) 2>&1; $b ip -o link | $b grep -c eth0`)
	want := "of the host\nfixed\nalone\n"
	if err != nil || !strings.Contains(out, want) || strings.Count(out, "Read-only file system") != 2 ||
		!strings.HasSuffix(out, "\n1\n") {
		t.Fatalf("%v: %s", err, out)
	}
	if fi, err := os.Stat(home + "/vol/new"); err != nil {
		t.Error(err)
	} else if st := fi.Sys().(*syscall.Stat_t); st.Uid != 300004 || st.Gid != 300005 {
		t.Errorf("a file of user 5 and group 6 belongs to %d and %d", st.Uid, st.Gid)
	}
	if out, err := run("run", "-v", "named:/n", root, "--", "/bin/busybox", "cat", "/n/kept"); err != nil || out != "kept\n" {
		t.Errorf("the volume with a name: %v, %q", err, out)
	}
	// A folder that a mount of its own makes read-only by parts cannot be shared read-only as a whole.
	if err := os.Mkdir(home+"/fixed/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", home+"/fixed/sub", "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Unmount(home+"/fixed/sub", 0) }()
	out, err = run("run", "-v", home+"/fixed:/ro:ro", root, "--", "/bin/busybox", "true")
	if err == nil || !strings.Contains(out, "fixed/sub is mounted below it") {
		t.Errorf("with a mount below it: %v, %s", err, out)
	}
}
