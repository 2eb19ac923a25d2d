package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// heard is a program that says which of the signals that end programs it gets, and ends with its number.
const heard = `for s in INT:2 TERM:15 USR1:10; do trap "echo ${s%:*}; exit ${s#*:}" ${s%:*}; done; echo up; while :; do /bin/busybox sleep 0.1; done`

// stopAtUp tells a command to end once its program is up, and returns the exit code and what the program says after.
func stopAtUp(t *testing.T, cmd *exec.Cmd) (code int, says string) {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "up\n" {
		t.Errorf("the program says %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	if code = waitEnd(t, cmd); t.Failed() {
		t.Log(errs.String())
	}
	return code, string(rest)
}

// TestStopSignalOfImage: a run that is told to end passes on the stop signal of its image to the program, unless the
// command line names another one; a program beside it gets TERM.
func TestStopSignalOfImage(t *testing.T) {
	treetest.Need(t, os.Geteuid() == 0, "root, to mount", "run the test as root")
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	leaktest.Check(t)
	work := t.TempDir()
	c := cliBox{t: t, strata: bootimagetest.Strata(t), state: filepath.Join(work, "state")}
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	root := treetest.Tar(t, treetest.Entry{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)},
		treetest.Entry{Name: "etc/passwd", Body: "app:x:1000:1000::/:/bin/sh\n"}, treetest.Entry{Name: "etc/group",
			Body: "staff:x:50:\n"})
	blobs := imagetest.Blobs{}
	image := filepath.Join(work, "image.tar")
	d := blobs.Image(t, &imagetest.Platform{OS: "linux", Architecture: runtime.GOARCH}, imagetest.Layer{Tar: root})
	if err := os.WriteFile(image, blobs.LayoutTar(t, imagetest.Tagged(d, "v1")), 0o600); err != nil {
		t.Fatal(err)
	}
	tarball := filepath.Join(work, "root.tar")
	if err := os.WriteFile(tarball, root, 0o600); err != nil {
		t.Fatal(err)
	}
	if imagetest.Config["StopSignal"] != "SIGINT" {
		t.Fatal("the image's stop signal is not the one that is looked for")
	}
	for _, tt := range []struct {
		name  string
		flags []string
		root  string
		says  string
		code  int
	}{
		{"the image's", nil, image, "INT\n", 2},
		{"the command line's", []string{"--stop-signal", "USR1"}, image, "USR1\n", 10},
		{"no image's", nil, tarball, "TERM\n", 15},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"run", "--isolation=process", "--entrypoint", ""}, tt.flags...)
			code, says := stopAtUp(t, c.cmd(append(args, tt.root, "--", "/bin/busybox", "sh", "-c", heard)...))
			if code != tt.code || says != tt.says {
				t.Errorf("exit code %d, %q; want %d, %q", code, says, tt.code, tt.says)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		scratch := t.TempDir()
		c.run("mount", "--vm", "host", "--scratch", scratch, "web", image)
		code, says := stopAtUp(t, c.cmd("exec", "--vm", "host", "web", "/bin/busybox", "sh", "-c", heard))
		if code != 15 || says != "TERM\n" {
			t.Errorf("exit code %d, %q; want 15, TERM", code, says)
		}
		c.run("unmount", "--vm", "host", "web")
	})
	if help := strings.Join(strings.Fields(c.run("exec", "--help")), " "); !strings.Contains(help,
		"asked to end by TERM") {
		t.Errorf("the help of exec says nothing of it: %s", help)
	}
}
