package images

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/test/nettest"
)

// toucher writes a file of a volume again and again, and says when it cannot.
const toucher = `echo up; while :; do echo x >/d/file || echo failed; ls /d >/dev/null || echo failed; sleep 0.2; done`

// checkGone fails where one of these processes lives on. Some end by themselves with what they serve, a moment after
// it.
func checkGone(t *testing.T, all map[string][]int) {
	t.Helper()
	until := time.Now().Add(patience)
	for name, pids := range all {
		for _, pid := range pids {
			for !leaktest.Ended(pid) && time.Now().Before(until) {
				time.Sleep(20 * time.Millisecond)
			}
			if !leaktest.Ended(pid) {
				t.Errorf("%s (process %d) is left", name, pid)
			}
		}
	}
}

// TestVolumeServerKilled: a container in a VM whose virtiofsd was killed ends and says why; nothing that is asked of it
// waits for ever, and nothing is left.
func TestVolumeServerKilled(t *testing.T) {
	b := newBox(t)
	b.needVM()
	dir := t.TempDir()
	b.start(nil, "--name", "web", "--network", "user", "-v", dir+":/d", debian, "sh", "-c", toucher)
	b.eventually("the container writes", func() bool {
		_, err := os.Stat(filepath.Join(dir, "file"))
		return err == nil
	})
	all := servants(b.inspect("web").Supervisor)
	if len(all["virtiofsd"]) == 0 || len(all["slirp4netns"]) == 0 || len(all["strata-web"]) != 1 {
		t.Fatalf("what serves the container: %v", all)
	}
	for _, pid := range all["virtiofsd"] {
		b.kill(pid)
	}
	b.eventually("the container has ended", func() bool { return b.inspect("web").State == "exited" })
	if r := b.inspect("web"); r.ExitCode != 125 || !strings.Contains(r.Error, "virtiofsd has ended") ||
		!strings.Contains(r.Error, dir) {
		t.Errorf("inspect tells %+v", r)
	}
	if got := b.run("ps", "-a"); !strings.Contains(got, "Exited (125)") {
		t.Errorf("ps tells %s", got)
	}
	if got := b.fails("exec", "web", "true"); !strings.Contains(got, "does not run") {
		t.Errorf("exec says %s", got)
	}
	b.run("stop", "web")
	b.run("rm", "web")
	checkGone(t, all)
}

// TestVolumeSourceRemoved: the folder of a volume is removed while a container has it. That goes on with errors, and is
// started again only when the folder is there.
func TestVolumeSourceRemoved(t *testing.T) { both(t, checkVolumeSourceRemoved) }

func checkVolumeSourceRemoved(t *testing.T, b box, flags []string) {
	dir := filepath.Join(t.TempDir(), "source")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.start(flags, "--name", "web", "-v", dir+":/d", debian, "sh", "-c", toucher)
	b.eventually("the container writes", func() bool {
		_, err := os.Stat(filepath.Join(dir, "file"))
		return err == nil
	})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	b.eventually("the container has errors", func() bool { return strings.Contains(b.run("logs", "web"), "failed") })
	b.run("exec", "web", "true")
	b.run("stop", "-t", "1", "web")
	if got := b.fails("start", "web"); !strings.Contains(got, dir) {
		t.Errorf("start without the folder: %s", got)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.run("start", "web")
	b.run("rm", "-f", "web")
}

// TestNetworkServerKilled: a container whose slirp4netns was killed goes on without its network, and has it again
// after a restart.
func TestNetworkServerKilled(t *testing.T) {
	b := newBox(t)
	address := fmt.Sprintf("127.0.0.1:%d", nettest.UnusedPort(t))
	b.start(isolations["process"], "--name", "web", "-p", address+":80", debian, "nginx", "-g", "daemon off;")
	answers := func() bool { return strings.Contains(page(address), "nginx") }
	b.eventually("the server answers", answers)
	all := servants(b.inspect("web").Supervisor)["slirp4netns"]
	if len(all) != 1 {
		t.Fatalf("what serves the network: %v", all)
	}
	b.kill(all[0])
	if answers() {
		t.Error("a server without a network answers")
	}
	if got := b.run("exec", "web", "nginx", "-v"); got != "" || b.inspect("web").State != "running" {
		t.Errorf("without its network the container is %s %s", b.inspect("web").State, got)
	}
	b.run("restart", "-t", "1", "web")
	b.eventually("the server answers again", answers)
	b.run("rm", "-f", "web")
}

// TestSupervisorKilledInVM kills the supervisor of a container in a VM, which has a network and a volume, at any moment
// of its start and life. The next command takes everything away.
func TestSupervisorKilledInVM(t *testing.T) {
	b := newBox(t)
	b.needVM()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 8 {
		cmd := b.command("run", "-d", "--name", "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", nettest.UnusedPort(t)),
			"-v", t.TempDir()+":/d",
			debian, "sh", "-c", toucher)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		begin := time.Now()
		var all map[string][]int
		running := func() { // the command has ended: there is a container
			supervisor := b.inspect("web").Supervisor
			all = servants(supervisor)
			b.kill(supervisor)
		}
		// The rounds hit all of the start, which takes longer on a busy host; where each does is not what counts.
		wait := time.NewTimer(time.Duration(round)*time.Second + time.Duration(rnd.IntN(1000))*time.Millisecond)
		select {
		case <-wait.C:
			all = servants(cmd.Process.Pid)
			for _, pid := range all["strata"] {
				b.kill(pid)
			}
			if err := <-done; err == nil && len(all["strata"]) == 0 {
				running() // it ended just now
			}
		case <-done:
			running()
		}
		t.Logf("round %d: killed after %v, with %v", round, time.Since(begin), all)
		b.run("recover")
		checkGone(t, all)
		if got := b.run("ps", "-a"); strings.Contains(got, "Up ") || strings.Contains(got, "Created") {
			t.Errorf("round %d: %s", round, got)
		} else if strings.Contains(got, " web\n") {
			b.run("rm", "web")
		}
	}
}
