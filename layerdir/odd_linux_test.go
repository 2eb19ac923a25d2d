package layerdir_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
)

func xattr(name, value string) map[string]string {
	return map[string]string{"SCHILY.xattr." + name: value}
}

// acl is a POSIX ACL in the form of getxattr, with entries of type, permissions and id.
func acl(entries ...[3]uint32) string {
	b := "\x02\x00\x00\x00"
	for _, e := range entries {
		b += string([]byte{byte(e[0]), byte(e[0] >> 8), byte(e[1]), byte(e[1] >> 8), byte(e[2]), byte(e[2] >> 8),
			byte(e[2] >> 16), byte(e[2] >> 24)})
	}
	return b
}

const noID = 0xffffffff

var goodACL = acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, 1000}, [3]uint32{4, 4, noID}, [3]uint32{16, 4, noID},
	[3]uint32{32, 0, noID})

// binary says that names are bytes, and no UTF-8.
var binary = map[string]string{"hdrcharset": "BINARY"}

// oddEntries are entries that Linux restricts by type, and how they come out: as tar unpacks them.
var oddEntries = []entry{
	{Name: "d/", PAX: xattr("user.a", "1")},
	{Name: "d/file", Body: "x", PAX: xattr("user.a", "1")},
	{Name: "d/link", Type: tar.TypeSymlink, Link: "file", PAX: xattr("user.a", "1")},
	{Name: "d/fifo", Type: tar.TypeFifo, PAX: xattr("user.a", "1")},
	{Name: "d/link-caps", Type: tar.TypeSymlink, Link: "file", PAX: xattr("security.capability", capability)},
	{Name: "d/fifo-caps", Type: tar.TypeFifo, PAX: xattr("security.capability", capability)},
	{Name: "d/file-caps", Body: "x", PAX: xattr("security.capability", capability)},
	{Name: "d/acl", Body: "x", Mode: 0o640, PAX: xattr("system.posix_acl_access", goodACL)},
	{Name: "d/no-acl", Body: "x", Mode: 0o640, PAX: xattr("system.posix_acl_access", acl())},
	{Name: "d/acls/", Mode: 0o740, PAX: map[string]string{"SCHILY.xattr.system.posix_acl_default": goodACL,
		"SCHILY.xattr.system.posix_acl_access": acl([3]uint32{1, 7, noID}, [3]uint32{4, 4, noID}, [3]uint32{8, 4, 5},
			[3]uint32{16, 4, noID}, [3]uint32{32, 0, noID})}},
	{Name: "d/file-default", Body: "x", PAX: xattr("system.posix_acl_default", goodACL)},
	{Name: "d/link-acl", Type: tar.TypeSymlink, Link: "file", PAX: xattr("system.posix_acl_access", goodACL)},
	{Name: "d/unknown", Body: "x", PAX: xattr("unknown.space", "1")},
	{Name: "d/instruction", Body: "x", PAX: xattr("user.overlay.redirect", "/etc")},
	{Name: "d/opaque-file", Body: "x", PAX: xattr("trusted.overlay.opaque", "y")},
	{Name: "d/hard", Type: tar.TypeLink, Link: "d/link"},
	{Name: "d/caf\xe9\xff", Body: "x", PAX: binary},
	{Name: "d/" + strings.Repeat("\xfe", 255), Body: "y", PAX: binary},
	{Name: "d/to-latin", Type: tar.TypeSymlink, Link: "caf\xe9\xff", PAX: binary},
}

// badEntries are entries that Linux would refuse, or read as garbage later on.
var badEntries = map[string]entry{
	"ACL that is cut off":    {Name: "f", PAX: xattr("system.posix_acl_access", goodACL[:15])},
	"ACL of another version": {Name: "f", PAX: xattr("system.posix_acl_access", "\x01"+goodACL[1:])},
	"ACL of no bytes":        {Name: "f", PAX: xattr("system.posix_acl_access", "x")},
	"ACL without others": {Name: "f",
		PAX: xattr("system.posix_acl_access", acl([3]uint32{1, 6, noID}, [3]uint32{4, 4, noID}))},
	"ACL without a mask": {Name: "f",
		PAX: xattr("system.posix_acl_access",
			acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, 7}, [3]uint32{4, 4, noID}, [3]uint32{32, 0, noID}))},
	"ACL in another order": {Name: "f",
		PAX: xattr("system.posix_acl_access", acl([3]uint32{4, 4, noID}, [3]uint32{1, 6, noID}, [3]uint32{32, 0, noID}))},
	"ACL with an unknown type": {Name: "f",
		PAX: xattr("system.posix_acl_access",
			acl([3]uint32{1, 6, noID}, [3]uint32{4, 4, noID}, [3]uint32{32, 0, noID}, [3]uint32{64, 0, noID}))},
	"ACL with an owner twice": {Name: "f",
		PAX: xattr("system.posix_acl_access",
			acl([3]uint32{1, 6, noID}, [3]uint32{1, 6, noID}, [3]uint32{4, 4, noID}, [3]uint32{32, 0, noID}))},
	"ACL with a user of no id": {Name: "f",
		PAX: xattr("system.posix_acl_access",
			acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, noID}, [3]uint32{4, 4, noID}, [3]uint32{16, 4, noID},
				[3]uint32{32, 0, noID}))},
	"ACL with a permission 8": {Name: "f",
		PAX: xattr("system.posix_acl_access", acl([3]uint32{1, 8, noID}, [3]uint32{4, 4, noID}, [3]uint32{32, 0, noID}))},
	"default ACL cut off":       {Name: "d/", PAX: xattr("system.posix_acl_default", goodACL[:15])},
	"capabilities cut off":      {Name: "f", PAX: xattr("security.capability", capability[:19])},
	"capabilities of version 9": {Name: "f", PAX: xattr("security.capability", capability[:3]+"\x09"+capability[4:])},
	"capabilities of no bytes":  {Name: "f", PAX: xattr("security.capability", "")},
	"text ACL without others":   {Name: "f", PAX: map[string]string{"SCHILY.acl.access": "user::rw-,group::r--"}},
}

// notInTrees leaves out of a description what a directory tree in a user namespace cannot have.
var notInTrees = regexp.MustCompile(` (trusted|security)\.[a-z.]+=[0-9a-f]*`)

// TestOddEntries: all formats have what tar unpacks, and refuse the same.
func TestOddEntries(t *testing.T) {
	b := treetest.Tar(t, oddEntries...)
	check := func(t *testing.T, format layerdir.Format, show func(t testing.TB, path string) map[string]string) {
		for name, e := range badEntries {
			_, err := layerdir.Convert(t.Context(),
				layerdir.Options{Format: format, Dir: filepath.Join(t.TempDir(), "bad"), Tar: bytes.NewReader(treetest.Tar(t, e))})
			if !errors.Is(err, layertree.ErrInvalid) {
				t.Errorf("%s: got %v, want %v", name, err, layertree.ErrInvalid)
			}
		}
		res, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: format, Dir: filepath.Join(t.TempDir(), "layer"), Tar: bytes.NewReader(b)})
		if err != nil {
			t.Fatal(err)
		}
		file, dir := filepath.Join(t.TempDir(), "layer.tar"), t.TempDir()
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		// tar sets what it can of a file and goes on, but for the marks of an overlay: these mean nothing to it.
		treetest.Untar(t, file, dir, "--xattrs-exclude=*.overlay.*", "--xattrs-exclude=unknown.*")
		want, got := treetest.Describe(t, dir), show(t, res.Path)
		delete(want, ".")
		delete(got, ".")
		if format == layerdir.Tree {
			for p := range want {
				want[p], got[p] = notInTrees.ReplaceAllString(want[p], ""), notInTrees.ReplaceAllString(got[p], "")
			}
		}
		if d := treetest.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	for i, f := range formats {
		t.Run(string(f.format), func(t *testing.T) {
			needRoot(t)
			check(t, f.format, func(tb testing.TB, path string) map[string]string {
				treetest.Run(tb, f.fsck[0], append(f.fsck[1:], path)...)
				return treetest.Unmarked(mounted(t, i, path))
			})
		})
	}
	t.Run("dir", func(t *testing.T) {
		if treetest.InUserNamespace(t, 65536) {
			check(t, layerdir.Tree, treetest.Describe)
		}
	})
}
