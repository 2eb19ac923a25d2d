package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// needServer makes a test that needs virtiofsd fail in CI and skip elsewhere.
func needServer(t testing.TB) {
	t.Helper()
	needQEMU(t)
	_, err := FindServer()
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("virtiofsd needs root")
	}
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// share is the Change that shares a path in a slot.
func share(slot uint32, path string, file, readOnly bool) vmm.Change {
	return vmm.Change{Op: vmm.Add, Device: vmm.VirtioFSShare{Slot: slot, Path: path, File: file, ReadOnly: readOnly},
		Mount: vmm.MappedVirtioFS{Slot: slot, MountPath: fmt.Sprintf("/run/strata/volumes/%d", slot), ReadOnly: readOnly}}
}

// serverOf is the number of the process that serves a slot.
func serverOf(t testing.TB, m *Machine, slot uint32) int {
	t.Helper()
	p, err := notedServer(m.serverFile(shareID(slot)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	return p.pid
}

func writeTree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// guestTools mounts busybox in a machine and returns what runs a script with it.
func guestTools(t testing.TB, m *Machine) func(script string) (string, int) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
	disk := ext4File(t, t.TempDir(), 0, 8<<20, busybox)
	apply(t, m, vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 63, Path: disk, ReadOnly: true},
		Mount: vmm.MappedDisk{LUN: 63, MountPath: "/run/tools", ReadOnly: true}})
	const box = "/run/tools/busybox"
	return func(script string) (string, int) {
		t.Helper()
		return run(t, m, box, "sh", "-c", "b() { "+box+` "$@"; }; cd /run/strata/volumes; `+script)
	}
}

func TestVMShares(t *testing.T) {
	needServer(t)
	m := realVM(t, image(t))
	sh := guestTools(t, m)
	base := t.TempDir()
	odd := filepath.Join(base, "a, b:c=d\nö")
	writeTree(t, base, map[string]string{"a, b:c=d\nö/in": "from the host\n", "ro/in/deep": "read only\n",
		"files/one": "one\n", "files/other": "not shared\n"})
	rw, ro := share(0, odd, false, false), share(1, filepath.Join(base, "ro"), false, true)
	file := share(maxShares-1, filepath.Join(base, "files/one"), true, false)
	roFile := share(3, filepath.Join(base, "files/other"), true, true)
	pmem := vmm.Change{Op: vmm.Add, Mount: vmm.MappedPMEM{Slot: 2, MountPath: "/run/p"},
		Device: vmm.VPMEMDevice{Slot: 2, Path: ext4File(t, base, 2, 4<<20)}}
	for _, c := range []vmm.Change{pmem, rw, ro, file, roFile} {
		apply(t, m, c)
	}
	pmem.Device, pmem.Mount = vmm.VPMEMDevice{Slot: 3, Path: ext4File(t, base, 3, 4<<20)},
		vmm.MappedPMEM{Slot: 3, MountPath: "/run/p3"}
	apply(t, m, pmem) // after the shares too
	for _, tc := range []struct{ script, want string }{
		{"b cat 0/in 1/in/deep 61/file 3/file /run/p3/name", "from the host\nread only\none\nnot shared\nlayer 3\n"},
		{"b echo guest >0/out && b mkdir 0/d && b ln -s ../in 0/d/link && b chown 12:34 0/out", ""},
		{"b touch 1/x 2>/dev/null || b rm 1/in/deep 2>/dev/null || b mount -o remount,rw /run/strata/volumes/1 && " +
			"b touch 1/x 2>/dev/null || echo refused", "refused\n"},
		{"b ls -A 61; echo two >61/file; b touch 61/beside 2>/dev/null || echo alone", "file\nalone\n"},
		{"echo three 2>/dev/null >3/file || echo refused", "refused\n"},
		{"b mknod 0/node b 8 0 2>/dev/null || echo refused", "refused\n"},
		{"b mknod 0/pipe p && b ls -A 0", "d\nin\nout\npipe\n"},
		// Each without VIRTIO_RING_F_EVENT_IDX, number 29, by which virtiofsd may miss a notification.
		{"for d in /sys/bus/virtio/devices/*; do [ $(b cat $d/device) = 0x001a ] && b cut -c30 $d/features; " +
			"done | b sort -u", "0\n"},
	} {
		if out, _ := sh(tc.script); out != tc.want {
			t.Errorf("%s\nsays %q, want %q", tc.script, out, tc.want)
		}
	}
	for name, want := range map[string]string{odd + "/out": "guest\n", base + "/files/one": "two\n",
		base + "/files/other": "not shared\n", odd + "/d/link": "from the host\n"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(odd+"/out", &st); err != nil || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("the guest's owner became %d:%d, %v", st.Uid, st.Gid, err)
	}
	sharesOpenedAgain(t, m, rw, ro, file, roFile)
}

// sharesOpenedAgain opens the machine once more and takes the shares away.
func sharesOpenedAgain(t *testing.T, m *Machine, changes ...vmm.Change) {
	t.Helper()
	m, obs := reopened(t, m)
	defer m.Close()
	for _, c := range changes {
		if obs.Device(c.Device.Addr()) != c.Device || obs.Mount(c.Mount) == nil {
			t.Errorf("%s: the machine has %v", c, obs)
		}
		pid := serverOf(t, m, c.Device.(vmm.VirtioFSShare).Slot)
		apply(t, m, c.Inverse())
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s is taken away, its virtiofsd (%d) lives: %v", c.Device, pid, err)
		}
	}
	obs, err := m.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range obs.Mounts {
		if _, ok := g.(vmm.MappedVirtioFS); ok {
			t.Errorf("%s is left", g)
		}
	}
	apply(t, m, changes[0]) // the place is free again
}

func TestVMShareContract(t *testing.T) {
	needServer(t)
	img := image(t)
	base := t.TempDir()
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		env := contractEnv(t, realVM(t, img), nil)
		env.Disk = vmmtest.ContractShare(func(n int) string {
			dir := filepath.Join(base, fmt.Sprint(n))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return dir
		})
		return env
	})
}

func TestVMShareServerDies(t *testing.T) {
	needServer(t)
	m := realVM(t, image(t))
	sh := guestTools(t, m)
	dir := t.TempDir()
	c := share(4, dir, false, false)
	apply(t, m, c)
	if out, code := sh("echo x >4/x"); code != 0 {
		t.Fatal(out)
	}
	s, err := OpenExec(t.Context(), m.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	said := make(chan error, 1)
	go func() { said <- s.WatchShares(t.Context(), 4) }()
	if err := unix.Kill(serverOf(t, m, 4), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-said:
		if !errors.Is(err, ErrServerDied) || !strings.Contains(err.Error(), dir) {
			t.Errorf("whoever watches hears %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("whoever watches hears nothing")
	}
	for what, change := range map[string]vmm.Change{"again": c, "unmount": c.GuestOnly().Inverse(),
		"remove": c.Inverse()} {
		if err := m.Apply(t.Context(), change); !errors.Is(err, ErrServerDied) {
			t.Errorf("%s: %v, want an error that says that the server has died", what, err)
		}
	}
	if err := m.CheckShare(t.Context(), 4); !errors.Is(err, ErrServerDied) {
		t.Errorf("the share is said to be well: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	begin := time.Now()
	if err := m.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the machine ended after %s", took)
	}
}

// TestShareLeftHalfWay: what a process that was killed in the middle of a change left is taken away by the next one.
func TestShareLeftHalfWay(t *testing.T) {
	needServer(t)
	for _, step := range []string{"server", "getfd", "chardev"} {
		t.Run(step, func(t *testing.T) {
			m, _, c := bare(t)
			d := vmm.VirtioFSShare{Slot: 2, Path: t.TempDir()}
			name, err := m.record(shareID(2), d)
			if err != nil {
				t.Fatal(err)
			}
			srv, err := startServer(d, serverOptions{dir: m.dir, note: m.serverFile(shareID(2))})
			if err != nil {
				t.Fatal(err)
			}
			defer srv.said.Close()
			defer srv.proc.close()
			if step != "server" {
				if err := m.qmp.doWith(t.Context(), "getfd", map[string]any{"fdname": name}, nil, srv.conn); err != nil {
					t.Fatal(err)
				}
			}
			if step == "chardev" {
				if err := m.qmp.do(t.Context(), "chardev-add", socketBackend(name), nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(srv.conn.Close(), m.Close()); err != nil { // as the end of the process does
				t.Fatal(err)
			}
			again, err := open(t.Context(), m.dir, c)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := srv.proc.waitExit(ctx); err != nil {
				t.Errorf("virtiofsd lives on: %v", err)
			}
			left, err := filepath.Glob(filepath.Join(m.attachedDir(), "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestShareRefused: what cannot be shared is an error that leaves nothing.
func TestShareRefused(t *testing.T) {
	needServer(t)
	m, _, _ := bare(t)
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"file": "x"})
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]vmm.VirtioFSShare{
		"missing":       {Slot: 1, Path: filepath.Join(dir, "nosuch")},
		"file as such":  {Slot: 1, Path: filepath.Join(dir, "file")},
		"folder":        {Slot: 1, Path: dir, File: true},
		"fifo":          {Slot: 1, Path: filepath.Join(dir, "fifo"), File: true},
		"too many":      {Slot: maxShares, Path: dir},
		"empty":         {Slot: 1},
		"below a file":  {Slot: 1, Path: filepath.Join(dir, "file/x")},
		"a fifo folder": {Slot: 1, Path: filepath.Join(dir, "fifo")},
	} {
		err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: d})
		if host, _ := vmm.Outcomes(vmm.Change{Op: vmm.Add, Device: d}, err); err == nil || host != vmm.NotDone {
			t.Errorf("%s: %v (host %s)", name, err, host)
		}
		left, err := filepath.Glob(filepath.Join(m.attachedDir(), "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", name, left, err)
		}
	}
}

// TestServerTalks: a server that says more than anybody reads goes on serving.
func TestServerTalks(t *testing.T) {
	treetest.NeedRoot(t, "which virtiofsd needs")
	dir := t.TempDir()
	bin, err := os.MkdirTemp("/var/tmp", "") // what is in /tmp a server does not see
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	script := "#!/bin/sh\nif [ \"$1\" = --help ]; then echo source=PATH; exit; fi\n" +
		"head -c 1000000 /dev/zero >&2\necho >" + shareRoot + "/talked\nexec sleep 1000\n"
	if err := os.WriteFile(bin+"/virtiofsd", []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s, err := startServer(vmm.VirtioFSShare{Path: dir}, serverOptions{dir: t.TempDir(), note: t.TempDir() + "/note"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(s.proc.kill(), s.conn.Close(), s.said.Close()); err != nil {
			t.Error(err)
		}
		s.proc.close()
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(dir + "/talked"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it waits until somebody reads what it says")
		}
	}
}

// TestServerArguments: both kinds of virtiofsd are told by what they say of themselves.
func TestServerArguments(t *testing.T) {
	for help, want := range map[string]string{
		"-o source=PATH   shared directory tree": "--fd=3 -f -o source=/s -o sandbox=namespace",
		"--shared-dir <SHARED_DIR>":              "--fd=3 --shared-dir=/s --sandbox=namespace",
	} {
		args, err := serverArguments(help, 3, "/s")
		if err != nil || !strings.HasPrefix(strings.Join(args, " "), want) {
			t.Errorf("%s: %q, %v", help, args, err)
		}
	}
	if _, err := serverArguments("usage: cat", 3, "/s"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("another program: %v", err)
	}
}
