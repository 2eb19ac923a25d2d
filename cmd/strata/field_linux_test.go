package main

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// onThisSystem runs programs in a root of its own on this system.
func onThisSystem(t *testing.T) (c cliBox, root func(entries ...treetest.Entry) string) {
	t.Helper()
	treetest.Need(t, os.Geteuid() == 0, "root, to mount", "run the test as root")
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	leaktest.Check(t)
	work := t.TempDir()
	c = cliBox{t: t, strata: bootimagetest.Strata(t), state: filepath.Join(work, "state")}
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	return c, func(entries ...treetest.Entry) string {
		path := filepath.Join(work, "root.tar")
		entries = append([]treetest.Entry{{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)}}, entries...)
		if err := os.WriteFile(path, treetest.Tar(t, entries...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// out runs a command with an input and returns what it prints to standard output.
func (c cliBox) out(in []byte, args ...string) string {
	c.t.Helper()
	cmd := c.cmd(args...)
	cmd.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		c.t.Errorf("strata %q: %v\n%s", args, err, errs.String())
	}
	return string(out)
}

// TestProgramsFromTheField: roots and programs that other tools had reports about.
func TestProgramsFromTheField(t *testing.T) {
	c, tarball := onThisSystem(t)
	junk := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(junk) // never fails
	for _, tt := range []struct {
		name  string
		root  string // more of its entries
		flags []string
		args  []string
		in    []byte
		want  string
	}{
		{"a working folder that the user cannot search", "root/", []string{"--user", "1000:1000", "--workdir", "/root"},
			[]string{"sh", "-c", "/bin/busybox id -u; pwd"}, nil, "1000\n/root\n"},
		{"binary input", "", []string{"-i"}, []string{"md5sum"}, junk, fmt.Sprintf("%x  -\n", md5.Sum(junk))},
		{"input that nobody reads to its end", "", []string{"-i"}, []string{"head", "-c", "3"}, bytes.Repeat([]byte("y\n"),
			1<<20), "y\ny"},
		{"a root without places for /proc, /sys and /dev, read-only", "", []string{"--read-only"},
			[]string{"sh", "-c", "cd /; for f in proc/self dev/null sys/kernel; do [ -e $f ] && echo $f; done; " +
				"echo x >x || echo shut"}, nil, "proc/self\ndev/null\nsys/kernel\nshut\n"},
		{"a working folder that a read-only root does not have", "", []string{"--read-only", "--workdir", "/data"},
			[]string{"pwd"}, nil, "/data\n"},
		{"a root without /etc/hosts", "", nil, []string{"grep", "-c", "localhost", "/etc/hosts"}, nil, "2\n"},
		{"a child that keeps the output", "", nil, []string{"sh", "-c", "/bin/busybox sleep 1000 & echo done"}, nil,
			"done\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c
			c.t = t
			var more []treetest.Entry
			if tt.root != "" {
				more = append(more, treetest.Entry{Name: tt.root, Mode: 0o700})
			}
			args := append([]string{"run", "--isolation=process", "--any-root"}, tt.flags...)
			if got := c.out(tt.in, append(append(args, tarball(more...), "--", "/bin/busybox"), tt.args...)...); got != tt.want {
				t.Errorf("it prints %q, want %q", got, tt.want)
			}
		})
	}
}

// TestHugeSparseFile: a file that is nearly all hole, as lastlog is, takes the room of what is in it. Its size counts
// for the limit.
func TestHugeSparseFile(t *testing.T) {
	c, _ := onThisSystem(t)
	need(t, "tar", "tar")
	busybox := need(t, "busybox", "busybox-static")
	root := t.TempDir()
	b, err := os.ReadFile(busybox)
	if err == nil {
		err = os.Mkdir(filepath.Join(root, "bin"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin", "busybox"), b, 0o755)
	}
	const size = 20 << 30
	log := filepath.Join(root, "lastlog")
	if err == nil {
		err = os.WriteFile(log, nil, 0o644)
	}
	if err == nil {
		err = os.Truncate(log, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString("last-record")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		tarball := filepath.Join(t.TempDir(), format+".tar")
		if out, err := exec.Command("tar", "-C", root, "-S", "--format="+format, "-cf", tarball,
			".").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		run := []string{"run", "--isolation=process"}
		out, err := c.cmd(append(run, "--max-layer-size", "1G", tarball, "--", "/bin/busybox", "true")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "the layer is larger than the limit") {
			t.Errorf("%s, with a limit that is smaller: %v, %s", format, err, out)
		}
		got := c.out(nil, append(run, tarball, "--", "/bin/busybox", "sh", "-c",
			"/bin/busybox stat -c %s /lastlog; /bin/busybox tail -c 11 /lastlog")...)
		if want := fmt.Sprint(size+len("last-record"), "\nlast-record"); got != want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
		kept := int64(0)
		layers := filepath.Join(c.state, "store", "layers")
		if err := filepath.WalkDir(layers, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				fi, ierr := d.Info()
				if err = ierr; err == nil {
					kept += fi.Size()
				}
			}
			return err
		}); err != nil || kept > 64<<20 {
			t.Errorf("%s: the store holds %d bytes, %v", format, kept, err)
		}
	}
}
