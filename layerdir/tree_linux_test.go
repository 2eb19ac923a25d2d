package layerdir_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/layerdir"
)

// inUserNamespaces runs a test in one with many ids and in one with a single id.
func inUserNamespaces(t *testing.T, f func(t *testing.T, one bool)) {
	for _, ids := range []int{65536, 1} {
		t.Run(fmt.Sprintf("%d ids", ids), func(t *testing.T) {
			if treetest.InUserNamespace(t, ids) {
				f(t, ids == 1)
			}
		})
	}
}

func toTree(t *testing.T, dir string, entries ...entry) (layerdir.Result, error) {
	t.Helper()
	return layerdir.Convert(t.Context(),
		layerdir.Options{Format: layerdir.Tree, Dir: dir, Tar: bytes.NewReader(treetest.Tar(t, entries...))})
}

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// TestTreeSameAsTar compares a tree with what tar unpacks in the same namespace.
func TestTreeSameAsTar(t *testing.T) {
	inUserNamespaces(t, func(t *testing.T, one bool) {
		long := strings.Repeat(strings.Repeat("p", 200)+"/", 19)
		entries := []entry{
			{Name: "./", Mode: 0o751}, {Name: "etc/"}, {Name: "etc/passwd", Body: "root", UID: 1, GID: 42},
			{Name: "etc/hard", Type: tar.TypeLink, Link: "etc/passwd"},
			{Name: "empty"}, {Name: "block", Body: strings.Repeat("b", 4096)},
			{Name: "more", Body: strings.Repeat("c", 200_001)},
			{Name: "holes", Body: strings.Repeat("d", 64<<10) + strings.Repeat("\x00", 256<<10) + "end"},
			{Name: "zero", Body: strings.Repeat("\x00", 1<<20)},
			{Name: "setuid", Mode: 0o6755, UID: 1000, GID: 1000, Body: "#!"},
			{Name: "sticky/", Mode: 0o1777, PAX: map[string]string{"SCHILY.xattr.user.d": "dir"}},
			{Name: "closed/", Mode: treetest.NoMode},
			{Name: "closed/in", Mode: treetest.NoMode, Body: "x", UID: 65535},
			{Name: "old", Time: time.Unix(-86_400, 5), Body: "1969"},
			{Name: "link", Type: tar.TypeSymlink, Link: "/etc/passwd", UID: 7},
			{Name: "out", Type: tar.TypeSymlink, Link: "../../../etc"},
			{Name: "fifo", Type: tar.TypeFifo, Mode: 0o640},
			{Name: "hard-fifo", Type: tar.TypeLink, Link: "fifo"}, {Name: "hard-link", Type: tar.TypeLink, Link: "link"},
			{Name: "\xff not UTF-8", Body: "x"}, {Name: "n\nl"}, {Name: strings.Repeat("n", 255)},
			{Name: "xattrs", Body: "x", PAX: map[string]string{"SCHILY.xattr.user.a": "hello",
				"SCHILY.xattr.user.z":              strings.Repeat("w", 1200),
				"SCHILY.xattr.security.capability": capability}},
		}
		for i := range 19 { // all the way down, so that none is implied
			entries = append(entries, entry{Name: long[:201*(i+1)]})
		}
		entries = append(entries, entry{Name: long + "end", Body: "deep"})
		res, err := toTree(t, filepath.Join(t.TempDir(), "layer"), entries...)
		if err != nil {
			t.Fatal(err)
		}
		file, dir := filepath.Join(t.TempDir(), "layer.tar"), t.TempDir()
		if err := os.WriteFile(file, treetest.Tar(t, entries...), 0o644); err != nil {
			t.Fatal(err)
		}
		args := []string{"--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", file, "-C", dir}
		if one {
			args = append(args, "--no-same-owner")
		}
		treetest.Run(t, "tar", args...)
		if d := treetest.Diff(treetest.Describe(t, dir), treetest.Describe(t, res.Path)); d != "" {
			t.Error(d)
		}
		if err := layerdir.CheckTree(filepath.Dir(res.Path)); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(filepath.Dir(res.Path)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("others get at the set-user-ID programs: %v, %v", st.Mode(), err)
		}
		if _, err := toTree(t, filepath.Dir(res.Path), entries...); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over a tree that is there: %v", err)
		}
	})
}

// TestTreeRules: what means something to an overlay, and what a user namespace cannot have.
func TestTreeRules(t *testing.T) {
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	inUserNamespaces(t, func(t *testing.T, one bool) {
		res, err := toTree(t, filepath.Join(t.TempDir(), "layer"), entry{Name: "a/.wh.gone"}, entry{Name: "b/.wh..wh..opq"},
			entry{Name: "c/in"}, entry{Name: ".wh.c"},
			entry{Name: "null", Type: tar.TypeChar, Major: 1, Minor: 3}, entry{Name: "disk", Type: tar.TypeBlock, Major: 8},
			entry{Name: "x", Mode: 0o640, PAX: map[string]string{"SCHILY.xattr.trusted.t": "1", "SCHILY.xattr.security.x": "2",
				"SCHILY.xattr.system.posix_acl_access": acl}},
			entry{Name: "l", Type: tar.TypeSymlink, Link: "x", PAX: map[string]string{"SCHILY.xattr.user.x": "1"}})
		if err != nil {
			t.Fatal(err)
		}
		got := treetest.Describe(t, res.Path)
		for name, want := range map[string]string{
			"a/gone": "device=0:0", "null": "device=0:0", "disk": "device=0:0",
			"b": " user.overlay.opaque=79", "c": " user.overlay.opaque=79",
		} {
			if !strings.HasSuffix(got[name], want) {
				t.Errorf("%s: got %q, want %q", name, got[name], want)
			}
		}
		if strings.Contains(got["a"]+got["l"]+got["x"], "overlay") || strings.Contains(got["x"], "trusted") ||
			strings.Contains(got["x"], "security") ||
			strings.Contains(got["l"], "user.") || strings.Contains(got["x"], "posix_acl_access=") == one {
			t.Errorf("attributes:\n%s\n%s\n%s", got["a"], got["x"], got["l"])
		}
	})
}

// TestTreeOwners: an owner that the namespace lacks is refused by name, and nothing is left.
func TestTreeOwners(t *testing.T) {
	if !treetest.InUserNamespace(t, 1000) {
		return
	}
	top := t.TempDir()
	_, err := toTree(t, filepath.Join(top, "new", "layer"), entry{Name: "fine", UID: 999},
		entry{Name: "etc/shadow", GID: 1000})
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "/etc/shadow: owner 0:1000") ||
		!strings.Contains(err.Error(), "unshare --map-auto") {
		t.Errorf("a group that is not mapped: %v", err)
	}
	if left, err := os.ReadDir(top); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	layer := filepath.Join(top, "layer")
	if _, err := toTree(t, layer, entry{Name: "f"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(layer, "layer.dir.ids"), []byte("uid 0 1 1\ngid 0 1 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := layerdir.CheckTree(layer); !errors.Is(err, layerdir.ErrOtherIDs) {
		t.Errorf("a tree of another namespace: %v", err)
	}
}

// TestNoTreeOutside: on a system that mounts disks set-user-ID programs in a tree would be real ones.
func TestNoTreeOutside(t *testing.T) {
	treetest.Need(t, !userns.Inside(), "the first user namespace", "run the test outside of containers")
	dir := filepath.Join(t.TempDir(), "layer")
	if _, err := toTree(t, dir, entry{Name: "f"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder was left: %v", err)
	}
}
