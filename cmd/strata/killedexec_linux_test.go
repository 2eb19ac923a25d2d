package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestKilledExec kills a command whose program runs in a container on this system. While it lives the container is
// not unmounted; then unmounting ends the program, which has outlived the command.
func TestKilledExec(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	init := bootimagetest.Strata(t)
	tarball := busyboxTar(t)
	c := cliBox{t: t, strata: init, state: filepath.Join(t.TempDir(), "state")}
	leaktest.Check(t)
	scratch := t.TempDir()
	c.run("mount", "--vm", "host", "--scratch", scratch, "web", "tar:"+tarball)
	cmd := c.cmd("exec", "--vm", "host", "web", "/bin/busybox", "sh", "-c", "echo up; exec /bin/busybox sleep 1000")
	out, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = os.Stderr
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Errorf("the program says %q, %v", line, err)
	}
	busy := c.cmd("unmount", "--vm", "host", "web")
	busy.Stdout = io.Discard
	var said strings.Builder
	busy.Stderr = &said
	if err := busy.Run(); err == nil || !strings.Contains(said.String(), "busybox") {
		t.Errorf("unmounted while a program runs: %v, %s", err, said.String())
	}
	_ = cmd.Process.Kill() // it runs, or is no more
	_ = cmd.Wait()
	c.run("unmount", "--vm", "host", "web")
	if left, err := os.ReadDir(filepath.Join(c.state, "vms/host/host/containers")); err == nil && len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
