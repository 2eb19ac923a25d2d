package layerdir_test

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// TestSameAsUmoci compares a stack of layers with whiteouts, hard links and changes of type, as the
// kernel's overlayfs shows our files, with what umoci unpacks.
func TestSameAsUmoci(t *testing.T) {
	needRoot(t)
	_, err := exec.LookPath("umoci")
	treetest.Need(t, err == nil, "umoci", "install the package umoci")
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	caps := map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00" + strings.Repeat("\x00", 12),
		"SCHILY.xattr.user.note":           "n"}
	layers := [][]byte{
		treetest.Tar(t, entry{Name: "./"}, entry{Name: "etc/"}, entry{Name: "etc/a", Body: "a"},
			entry{Name: "etc/b", Body: "b", UID: 100_000, GID: 70_000},
			entry{Name: "opt/"}, entry{Name: "opt/x/"}, entry{Name: "opt/x/old", Body: "old"}, entry{Name: "bin/"},
			entry{Name: "bin/ping", Mode: 0o4755, Body: "ping", PAX: caps},
			link("bin/ping6", "bin/ping"), entry{Name: "lib", Type: tar.TypeSymlink, Link: "usr/lib"}, entry{Name: "usr/"},
			entry{Name: "usr/lib/"}, entry{Name: "usr/lib/so", Body: "so"},
			entry{Name: "dev/"}, entry{Name: "dev/null", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
			entry{Name: "run/"}, entry{Name: "run/fifo", Type: tar.TypeFifo},
			entry{Name: "tmp/", Mode: 0o1777}, entry{Name: "kind", Body: "file"}),
		treetest.Tar(t, entry{Name: "etc/"}, entry{Name: "etc/.wh.a"}, entry{Name: "opt/"},
			entry{Name: "opt/x/", Mode: 0o700}, entry{Name: "opt/x/.wh..wh..opq"},
			entry{Name: "opt/x/new", Body: "new"}, entry{Name: ".wh.kind"}, entry{Name: "kind/"},
			entry{Name: "kind/inside", Body: "1"}),
		treetest.Tar(t, entry{Name: "etc/"}, entry{Name: "etc/a", Body: "again"},
			entry{Name: "etc/b", Body: "changed", Mode: 0o600}, entry{Name: "bin/"},
			entry{Name: "bin/.wh.ping6"}, entry{Name: "run/"}, entry{Name: "run/.wh.fifo"}, entry{Name: "hard1", Body: "h"},
			link("hard2", "hard1")),
	}
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	treetest.Run(t, "umoci", "init", "--layout", layout)
	treetest.Run(t, "umoci", "new", "--image", layout+":x")
	for i, b := range layers {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar", i))
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		treetest.Run(t, "umoci", "raw", "add-layer", "--image", layout+":x", path)
	}
	treetest.Run(t, "umoci", "unpack", "--image", layout+":x", filepath.Join(dir, "bundle"))
	want := treetest.Describe(t, filepath.Join(dir, "bundle", "rootfs"))
	// Overlayfs counts the name that the third layer has hidden.
	hidden := func(d map[string]string) { d["bin/ping"] = strings.Replace(d["bin/ping"], " links=2", " links=1", 1) }
	hidden(want)
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			var lowers []string
			for _, b := range layers {
				lowers = append([]string{treetest.Mount(t, convert(t, i, b), f.fstype)}, lowers...)
			}
			root := t.TempDir()
			if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(root, 0); err != nil {
					t.Error(err)
				}
			}()
			got := treetest.Describe(t, root)
			delete(got, "lost+found")
			hidden(got)
			// A layer without an entry for the root gives it the default; umoci keeps what was there.
			got["."], want["."] = "", ""
			if d := treetest.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}
