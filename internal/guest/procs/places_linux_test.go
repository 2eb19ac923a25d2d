package procs

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// rootWith makes a root with folders and links.
func rootWith(t *testing.T, links map[string]string) rootDir {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"etc", "proc", "srv/data"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.close)
	return root
}

// TestPlacesOfMounts: links of an image lead no mount over what the kernel shows, and none out of the root.
func TestPlacesOfMounts(t *testing.T) {
	root := rootWith(t, map[string]string{"run": "/proc", "var": "srv/data", "up": "../../../..", "self": "proc/self/fd",
		"firmware": "/./sys//firmware", "d": "dev", "shm": "dev/shm", "twice": "/up/run", "loop": "loop",
		"srv/data/out": "../../proc", "away": "/none/at/all", "dots": "/none/../proc"})
	for path, want := range map[string]string{
		"/etc": "/etc", "/none/x": "/none/x", "//etc/./x/../y": "/etc/y",
		"/var": "/srv/data", "/var/x": "/srv/data/x", "/var/out/x": "/proc/x", "/run": "/proc", "/up": "/", "/up/etc": "/etc",
		"/twice/sys": "/proc/sys", "/self": "/proc/self/fd", "/firmware": "/sys/firmware", "/away/x": "/none/at/all/x",
		"/dots": "/proc", "/loop": "",
	} {
		got, err := root.leadsTo(path)
		if got != want || (want == "") != errors.Is(err, unix.ELOOP) {
			t.Errorf("%s leads to %q, %v; want %q", path, got, err, want)
		}
	}
	for to, ok := range map[string]bool{"/proc": true, "/sys": true, "/dev": true, "/dev/x": true, "/var": true,
		"/var/x": true, "/away": true, "/shm": true, "/data": true,
		"/run": false, "/run/x": false, "/up": false, "/twice": false, "/firmware": false, "/d": false, "/var/out": false,
		"/loop": false, "/dots": false} {
		err := root.checkPlaces([]specs.Mount{{Destination: to}})
		if (err == nil) != ok || !ok && to != "/loop" && !errors.Is(err, gcsserver.ErrInvalid) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// TestKindsOfPlaces: a folder is not mounted over a file of the image, nor a file over a folder, wherever links lead;
// what an earlier mount shows is not the image's.
func TestKindsOfPlaces(t *testing.T) {
	root := rootWith(t, map[string]string{"conf": "etc", "note": "srv/data/file", "gone": "none", "srv/data/in": "file"})
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600),
		os.WriteFile(filepath.Join(root.dir.Name(), "srv/data/file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	bind := func(source, to string) specs.Mount { return specs.Mount{Type: "bind", Source: source, Destination: to} }
	memory := func(to string) specs.Mount { return specs.Mount{Type: "tmpfs", Destination: to} }
	const overFile, overFolder = `over the image's file "/srv/data/file"`, `over the image's folder "/etc"`
	for _, c := range []struct {
		mounts []specs.Mount
		want   string
	}{
		{[]specs.Mount{bind(folder, "/etc"), bind(file, "/srv/data/file"), bind(file, "/new"), bind(folder, "/gone"),
			memory("/srv/data"), bind("/dev/null", "/note"), bind(file+"/none", "/conf")}, ""},
		{[]specs.Mount{bind(folder, "/note")}, overFile},
		{[]specs.Mount{memory("/note")}, overFile},
		{[]specs.Mount{bind(folder, "/srv/data/in")}, overFile},
		{[]specs.Mount{bind(file, "/conf")}, overFolder},
		{[]specs.Mount{bind("/dev/null", "/etc")}, overFolder},
		{[]specs.Mount{memory("/srv/data"), bind(folder, "/srv/data/file")}, ""},
		{[]specs.Mount{memory("/srv/data"), bind(folder, "/srv/data/in")}, ""},
		{[]specs.Mount{memory("/srv/data"), bind(folder, "/note")}, ""},
		{[]specs.Mount{bind(folder, "/note"), memory("/srv/data")}, overFile},
		{[]specs.Mount{bind(folder, "/note/new/a")}, `below the image's file "/srv/data/file"`},
	} {
		err := root.checkPlaces(c.mounts)
		if (err == nil) != (c.want == "") || err != nil &&
			(!strings.Contains(err.Error(), c.want) || !errors.Is(err, gcsserver.ErrInvalid)) {
			t.Errorf("%v: %v, want %q", c.mounts, err, c.want)
		}
	}
}

// TestLeasedFile: a container that has a lease of a file holds up nobody who opens it.
func TestLeasedFile(t *testing.T) {
	root := rootWith(t, nil)
	path := filepath.Join(root.dir.Name(), "etc/passwd")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	signal.Ignore(unix.SIGIO) // which asks the holder for the lease
	defer signal.Reset(unix.SIGIO)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("no leases here: ", err)
	}
	if f, err := root.openRegular("/etc/passwd"); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("opened: %v, %v", f, err)
	}
}

// TestDeviceForAFile: a device node in the place of a file is not opened.
func TestDeviceForAFile(t *testing.T) {
	treetest.NeedRoot(t, "to make device nodes")
	root := rootWith(t, nil)
	at := func(name string) string { return filepath.Join(root.dir.Name(), name) }
	if err := errors.Join(
		unix.Mknod(at("etc/group"), unix.S_IFCHR|0o755, int(unix.Mkdev(240, 77))), // opening it would say ENXIO
		unix.Mkfifo(at("etc/passwd"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/group", "/etc/passwd", "/etc"} {
		err := accounts(root, path, 3, 4, func([]string) bool { return true })
		if !errors.Is(err, gcsserver.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
		if f := root.find(command{Args: []string{path}}); f != nil {
			t.Errorf("%s is a program", path)
		}
	}
}

// TestLinksOfVolumes: links of a volume lead no later mount over what the kernel shows; others are followed, in the root.
func TestLinksOfVolumes(t *testing.T) {
	root := rootWith(t, map[string]string{"srv/data/hidden": "/proc", "d": "srv/data"})
	volume := t.TempDir()
	if err := os.Mkdir(filepath.Join(volume, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"k": "/proc", "out": "../../../../../../sys", "sub/up": "../..", "conf": "/etc",
		"twice": "sub/../k", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	for to, ok := range map[string]bool{"/srv/data/x": true, "/srv/data/conf": true, "/srv/data/hidden": true,
		"/srv/data/sub": true, "/d/conf/x": true,
		"/srv/data/k": false, "/srv/data/k/sys": false, "/srv/data/out": false, "/srv/data/twice": false,
		"/srv/data/sub/up/../proc": false, "/d/k": false, "/srv/data/loop": false} {
		err := root.checkPlaces([]specs.Mount{{Type: "proc", Destination: "/proc"}, {Type: "sysfs", Destination: "/sys"},
			{Type: "bind", Source: volume, Destination: "/srv/data"}, {Type: "bind", Source: t.TempDir(), Destination: to}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", to, err)
		}
	}
	for _, options := range [][]string{nil, {"size=1m", "tmpcopyup"}} { // what begins as the image has its links
		err := root.checkPlaces([]specs.Mount{{Type: "tmpfs", Destination: "/srv/data", Options: options},
			{Type: "bind", Source: t.TempDir(), Destination: "/srv/data/hidden/sys"}})
		if (err != nil) != (options != nil) {
			t.Errorf("below a tmpfs with %q: %v", options, err)
		}
	}
}
