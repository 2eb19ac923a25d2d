package test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestAgrees: host and container agree on the time, on what is in large files, of the root and of a mount, both ways,
// and on how programs ended; what is sent to all processes of one container does not reach another.
func TestAgrees(t *testing.T) {
	d := need(t)
	const size = 32 << 20
	shared, random := t.TempDir(), rand.NewChaCha8([32]byte{7})
	content := make([]byte, size)
	_, _ = random.Read(content) // it does not fail
	if err := os.WriteFile(shared+"/in", content, 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("busybox") // of which the image is made
	if err != nil {
		t.Fatal(err)
	}
	box, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, run("--detach", "--mount", "type=bind,src="+shared+",dst=/shared,options=rbind:rw", image, "agrees",
		"sleep", "1000")...)
	d.must(t, 0, run("--detach", image, "peer", "sleep", "1000")...)
	n := 0
	inside := func(code int, script string) string {
		t.Helper()
		n++
		return d.must(t, code, "task", "exec", "--exec-id", fmt.Sprint("e", n), "agrees", "sh", "-c", script).stdout
	}
	const most = 2 * time.Second
	before := time.Now()
	seconds, err := strconv.ParseInt(strings.TrimSpace(inside(0, "busybox date +%s")), 10, 64)
	if at := time.Unix(seconds, 0); err != nil || at.Before(before.Add(-most)) || at.After(time.Now().Add(most)) {
		t.Errorf("the container's clock says %v, asked at %v: %v", at, before, err)
	}
	sum := func(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
	want := []string{sum(box), "/bin/busybox", sum(content), "/shared/in", sum(content), "/tmp/copy"}
	if got := strings.Fields(inside(0, "cat /shared/in >/tmp/copy; cat /shared/in >/shared/out; "+
		"busybox sha256sum /bin/busybox /shared/in /tmp/copy")); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("files: %q, want %q", got, want)
	}
	if out, err := os.ReadFile(shared + "/out"); err != nil || sum(out) != sum(content) {
		t.Errorf("what was written to the mount: %d bytes, %v", len(out), err)
	}
	for _, code := range []int{0, 1, 2, 126, 127, 128, 200, 254, 255} {
		inside(code, fmt.Sprint("exit ", code))
	}
	for _, sig := range []int{1, 9, 11, 15} {
		inside(128+sig, fmt.Sprintf("kill -%d $$", sig))
	}
	d.must(t, 0, "task", "kill", "--all", "--signal", "KILL", "agrees")
	until(t, func() error {
		if r := d.ctr(nil, "task", "ls"); !strings.Contains(r.stdout, "STOPPED") {
			return fmt.Errorf("it was killed: %s", r.stdout)
		}
		return nil
	})
	d.must(t, 0, "task", "exec", "--exec-id", "lives", "peer", "echo", "lives")
	d.must(t, 0, "task", "rm", "agrees")
	d.must(t, 0, "task", "rm", "--force", "peer")
	d.must(t, 0, "container", "rm", "agrees", "peer")
	d.clean(t)
}
