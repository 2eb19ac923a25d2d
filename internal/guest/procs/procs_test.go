//go:build linux

package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// TestProgramEndsWithItsContext: making a file system ends when the Add is given up.
func TestProgramEndsWithItsContext(t *testing.T) {
	s := NewSpawner(false)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, "/bin/sleep", "1000") }()
	for running := false; !running; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		running = len(s.pids) == 1
		s.mu.Unlock()
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}

// TestTemporaryMounts: what of the mounts in a document is done, and what is refused.
func TestTemporaryMounts(t *testing.T) {
	for _, tc := range []struct {
		m    specs.Mount
		want string // target and data; "" for none
		err  error
	}{
		{specs.Mount{Destination: "/run", Type: "tmpfs", Options: []string{"mode=755", "evil=1", "size=1,uid=0"}},
			"/run mode=755", nil},
		{specs.Mount{Destination: "../x/../y", Type: "tmpfs"}, "/y ", nil},
		{specs.Mount{Destination: "/dev/shm", Type: "tmpfs"}, "", nil},
		{specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup"}, "", nil},
		{specs.Mount{Destination: "/", Type: "tmpfs"}, "", gcsserver.ErrInvalid},
		{specs.Mount{Destination: "/proc/sys", Type: "tmpfs"}, "", gcsserver.ErrInvalid},
		{specs.Mount{Destination: "/data", Type: "bind", Source: "/run"}, "", gcsserver.ErrUnsupported},
		{specs.Mount{Destination: "/data"}, "", gcsserver.ErrUnsupported},
	} {
		got, err := temporaryMounts([]specs.Mount{tc.m})
		text := ""
		for _, m := range got {
			text += m.Destination + " " + strings.Join(m.Options, ",")
		}
		if text != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%+v: %q, %v; want %q, %v", tc.m, text, err, tc.want, tc.err)
		}
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestAccounts: lines that are short, torn or strange are read as the C library reads them.
func TestAccounts(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, root+"/etc/passwd", "four:x:44:45\n  six:x:66:67::/six\nseven:x:77:78:a:/seven:/bin/sh:more\n"+
		"torn:x\nthree:x:33\nword:x:abc:1::/:\nnone:x::1::/:\n"+
		"blank:x: 5:1::/:\n#web:x:1:1::/:\n+nis:x:2:2::/:\n-nis:x:2:2::/:\n\n")
	writeFile(t, root+"/etc/group",
		"three:x:33\nfour:x:34:seven,four\n torn:x\nword:x:abc:seven\n#web:x:1:seven\n+:x:2:seven\n")
	for _, tc := range []struct {
		spec, want string // want is "" for an error
	}{
		{"four", "44 45 [34] /"}, {"44", "44 45 [34] /"}, {"six", "66 67 [] /six"}, {"seven", "77 78 [34] /seven"},
		{"seven:three", "77 33 [] /seven"}, {"9:three", "9 33 [] /"}, {"9", "9 0 [] /"}, {"", "0 0 [] /"},
		{"torn", ""}, {"three", ""}, {"word", ""}, {"none", ""}, {"#web", ""}, {"+nis", ""}, {"-nis", ""},
		{"four:torn", ""}, {"four:word", ""}, {"four:#web", ""},
	} {
		dir, err := openRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		id, err := lookupUser(dir, tc.spec)
		dir.close()
		got := fmt.Sprintf("%d %d %v %s", id.uid, id.gid, id.groups, id.home)
		if (err != nil) != (tc.want == "") || err == nil && got != tc.want {
			t.Errorf("%q: %s, %v; want %s", tc.spec, got, err, tc.want)
		}
	}
}
