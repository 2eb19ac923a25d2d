package treetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Entry is a tar entry for tests: what is not set has a sensible value.
type Entry struct {
	Name  string
	Type  byte  // 0: a directory when the name ends with a slash, else a file
	Mode  int64 // 0: 0755 of a directory, 0644 of anything else
	Body  string
	Link  string
	UID   int
	GID   int
	Time  time.Time
	Major int64
	Minor int64
	PAX   map[string]string
}

// NoMode is the mode of an entry without any permission.
const NoMode = -1

// epoch is the time of entries that have none.
var epoch = time.Unix(1_600_000_000, 123_456_789)

// Tar writes a tar of entries, in PAX format.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Type, Mode: e.Mode, Size: int64(len(e.Body)), Linkname: e.Link,
			Uid: e.UID, Gid: e.GID, ModTime: e.Time, Devmajor: e.Major, Devminor: e.Minor, PAXRecords: e.PAX,
			Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		switch {
		case h.Mode == NoMode:
			h.Mode = 0
		case h.Mode == 0 && h.Typeflag == tar.TypeDir:
			h.Mode = 0o755
		case h.Mode == 0:
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = epoch
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("tar entry %q: %v", e.Name, err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatalf("tar entry %q: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Programs writes a tar of files, which are all programs, in the order of their names; a name that ends in a slash is a
// folder.
func Programs(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var entries []Entry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, Entry{Name: name, Mode: 0o755, Body: files[name]})
	}
	return Tar(t, entries...)
}

// Everything is a tar with each kind of entry that a layer can have and plain tar can unpack: files of
// all sorts of sizes, hard links across directories, long names, attributes, devices, large ids, times
// with nanoseconds and before 1970.
func Everything(t testing.TB) []byte {
	t.Helper()
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	long := strings.Repeat("n", 255)
	entries := []Entry{
		{Name: "./", Mode: 0o755},
		{Name: "etc/"},
		{Name: "etc/passwd", Body: "root:x:0:0::/root:/bin/sh\n"},
		{Name: "empty", Body: ""},
		{Name: "one-block", Body: strings.Repeat("b", 4096)},
		{Name: "block-and-a-bit", Body: strings.Repeat("c", 4097)},
		{Name: "holes", Body: strings.Repeat("d", 64<<10) + strings.Repeat("\x00", 256<<10) + "end of holes"},
		{Name: "all-zero", Body: strings.Repeat("\x00", 1<<20)},
		{Name: "trailing-hole", Body: "begin" + strings.Repeat("\x00", 300_000)},
		{Name: "setuid", Mode: 0o4755, Body: "#!"},
		{Name: "sticky/", Mode: 0o1777},
		{Name: "big-ids", UID: 70_000, GID: 3_000_000_000, Body: "x"},
		{Name: "old", Time: time.Unix(-86_400*365*10, 5), Body: "1960"},
		{Name: "future", Time: time.Unix(5_000_000_000, 999_999_999), Body: "2128"},
		{Name: "link-short", Type: tar.TypeSymlink, Link: "etc/passwd"},
		{Name: "link-59", Type: tar.TypeSymlink, Link: strings.Repeat("s", 59)},
		{Name: "link-60", Type: tar.TypeSymlink, Link: strings.Repeat("s", 60)},
		{Name: "link-4095", Type: tar.TypeSymlink, Link: strings.Repeat("s", 4095)},
		{Name: "fifo", Type: tar.TypeFifo},
		{Name: "chr", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
		{Name: "blk", Type: tar.TypeBlock, Major: 259, Minor: 70_000, Mode: 0o660},
		{Name: "deep/a/b/c/hard", Type: tar.TypeLink, Link: "etc/passwd"},
		{Name: "hard-fifo", Type: tar.TypeLink, Link: "fifo"},
		{Name: "hard-symlink", Type: tar.TypeLink, Link: "link-60"},
		{Name: "long/" + long, Body: "name of 255 bytes"},
		{Name: "xattrs", Body: "x", PAX: map[string]string{
			"SCHILY.xattr.user.comment":        "hello",
			"SCHILY.xattr.user.empty":          "",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00" + strings.Repeat("\x00", 12),
			"SCHILY.xattr.trusted.t":           strings.Repeat("v", 700),
			"SCHILY.xattr.user.z":              strings.Repeat("w", 1200),
			"SCHILY.xattr.trusted.long.name":   "1",
			"SCHILY.xattr.security.x":          strings.Repeat("2", 90),
		}},
		{Name: "acl", Body: "x", Mode: 0o640, PAX: map[string]string{"SCHILY.xattr.system.posix_acl_access": acl}},
		{Name: "acl-dir/", Mode: 0o750, PAX: map[string]string{"SCHILY.xattr.system.posix_acl_default": acl}},
		{Name: "dir-xattr/", PAX: map[string]string{"SCHILY.xattr.user.d": "dir"}},
		{Name: "many/"},
	}
	for i := range 700 {
		entries = append(entries, Entry{Name: fmt.Sprintf("many/file-with-a-longish-name-%04d", i),
			Body: strings.Repeat("m", i)})
	}
	// A path as long as Linux allows, of several components.
	path := strings.Repeat(strings.Repeat("p", 200)+"/", 20) + "end"
	entries = append(entries, Entry{Name: path[:min(len(path), 3900)], Body: "deep"})
	return Tar(t, entries...)
}
