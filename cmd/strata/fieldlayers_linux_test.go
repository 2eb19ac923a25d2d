package main

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// repeatedImage is an image that has some layers more than once: its base, one without entries, one that makes a file
// and one that takes it away. The last word of the file is that it is there.
func (c cliBox) repeatedImage() string {
	c.t.Helper()
	base, none := busyboxLayer(c.t), treetest.Tar(c.t)
	x, gone := treetest.Tar(c.t, treetest.Entry{Name: "x", Body: "1"}), treetest.Tar(c.t, treetest.Entry{Name: ".wh.x"})
	return c.imageOf(map[string]any{"Cmd": shell("/bin/busybox cat /x")},
		base, none, none, x, none, gone, x, gone, x, none, base)
}

// manyImage is an image of 300 layers: its base, and a file of each of the others.
func (c cliBox) manyImage() string {
	c.t.Helper()
	layers := [][]byte{busyboxLayer(c.t)}
	for i := range 299 {
		layers = append(layers, treetest.Tar(c.t, treetest.Entry{Name: fmt.Sprint("d/f", i), Body: strconv.Itoa(i)}))
	}
	return c.imageOf(map[string]any{"Cmd": shell("/bin/busybox ls /d | /bin/busybox wc -l; /bin/busybox cat /d/f298")},
		layers...)
}

// TestManyLayersOfImage: an image may have a layer as often as it likes, which is converted once, and 300 layers.
func TestManyLayersOfImage(t *testing.T) {
	c, _ := processBox(t)
	repeated, many := c.repeatedImage(), c.manyImage()
	if got := c.out(nil, "import", "--name", "repeated", repeated); !strings.Contains(got, "11 layers, 4 converted") {
		t.Errorf("import says %q", got)
	}
	for _, format := range []string{"erofs", "vhd"} {
		if got := c.out(nil, "run", "--isolation=process", "--format", format, repeated); got != "1" {
			t.Errorf("%s: it prints %q, want 1", format, got)
		}
	}
	if got := c.out(nil, "run", "--isolation=process", many); got != "299\n298" {
		t.Errorf("with 300 layers it prints %q, want 299 files, and 298 in the last", got)
	}
	if got := c.out(nil, "store", "check"); !strings.Contains(got, ": 0 problems") {
		t.Errorf("store check says %q", got)
	}
}

// TestRootWithoutPlaces: a root in which nothing can be made, and which has no place for /proc, says what would help.
func TestRootWithoutPlaces(t *testing.T) {
	c, root := processBox(t)
	layer := filepath.Join(t.TempDir(), "layer")
	c.run("import", root, layer)
	c.run("mount", "--vm", "host", "bare", layer)
	out, err := c.cmd("exec", "--vm", "host", "bare", "/bin/busybox", "true").CombinedOutput()
	const want = "mount the root with a scratch, or with a layer that has the folders proc, sys and dev"
	if err == nil || !bytes.Contains(out, []byte(want)) {
		t.Errorf("%v, %s; want %q", err, out, want)
	}
	c.run("unmount", "--vm", "host", "bare")
}

// TestProbesInVM: what programs in a VM find, that other tools had reports about, in one VM.
func TestProbesInVM(t *testing.T) {
	strata := bootimagetest.Strata(t)
	needVM(t, strata)
	leaktest.Check(t)
	c := cliBox{t: t, strata: strata, state: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	c.run("vm", "start")
	root := c.imageFile(map[string]any{"Cmd": shell("")}, treetest.Entry{Name: "root/", Mode: 0o700},
		treetest.Entry{Name: "etc/motd", Body: "no program"})
	rights, saysRights := c.rightsImage()
	junk := make([]byte, 5_000_000)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(junk) // never fails
	numbers := strings.Fields(strings.Repeat("a00000 ", 100_000))
	for _, tt := range []struct {
		name  string
		flags []string
		image string
		args  []string
		in    []byte
		want  string
		code  int
	}{
		{name: "layers that are there many times", image: c.repeatedImage(), want: "1"},
		{name: "300 layers", image: c.manyImage(), want: "299\n298"},
		{name: "5 MB of input", flags: []string{"-i"}, image: root, args: []string{"/bin/busybox", "md5sum"}, in: junk,
			want: fmt.Sprintf("%x  -\n", md5.Sum(junk))},
		{name: "rights of files", image: rights, want: saysRights},
		{name: "a working folder that the user cannot search", image: root,
			flags: []string{"-u", "1000:1000", "-w", "/root"}, args: shell("/bin/busybox id -u; pwd"),
			want: "1000\n/root\n"},
		{name: "arguments with ends of lines", image: root,
			args: []string{"/bin/busybox", "printf", "%s|", "ü", "a\nb", ""}, want: "ü|a\nb||"},
		{name: "an argument that no document can have", image: root, args: []string{"/bin/busybox", "echo", "\xff\xfe"},
			code: 125},
		{name: "100000 arguments", image: root, args: append(shell("echo $#"), append([]string{"x"}, numbers...)...),
			want: "100000\n"},
		{name: "a program that is killed", flags: []string{"--init"}, image: root, args: shell("kill -9 $$"),
			code: 137},
		{name: "no program", image: root, args: []string{"/nonexistent"}, code: 127},
		{name: "a file that is no program", image: root, args: []string{"/etc/motd"}, code: 126},
		{name: "one root, and the loopback interface is up", image: root,
			args: shell("b=/bin/busybox; $b awk '$5 == \"/\"' /proc/self/mountinfo | $b wc -l; " +
				"for h in 127.0.0.1 localhost $HOSTNAME; do $b ping -c 1 -W 30 $h >/dev/null && echo reached; done"),
			want: "1\nreached\nreached\nreached\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(append([]string{"run", "--vm", "default"}, tt.flags...), tt.image)
			if tt.args != nil {
				args = append(append(args, "--"), tt.args...)
			}
			cmd := c.cmd(args...)
			cmd.Stdin = bytes.NewReader(tt.in)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			code := 0
			if ee, ok := errors.AsType[*exec.ExitError](err); ok {
				code, err = ee.ExitCode(), nil
			}
			if err != nil || code != tt.code || string(out) != tt.want {
				t.Errorf("exit code %d, it prints %.200q, %v; want %d, %.200q\n%s", code, out, err, tt.code, tt.want,
					&errs)
			}
		})
	}
	before := time.Now().Unix()
	says := c.out(nil, "run", "--vm", "default", root, "/bin/busybox", "date", "+%s")
	inside, err := strconv.ParseInt(strings.TrimSpace(says), 10, 64)
	if after := time.Now().Unix(); err != nil || inside < before-60 || inside > after+60 {
		t.Errorf("the clock inside says %d, that of the host went from %d to %d: %v", inside, before, after, err)
	}
	c.run("vm", "stop")
}
