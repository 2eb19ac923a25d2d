package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// benchRounds is how often each program of a benchmark runs, in turns, so that all have the same of what else the
// host does. The first round warms up and does not count.
const benchRounds = 20

// BenchmarkRunProcess compares strata run --isolation=process of a tar that the store has with the runtimes alone, on
// a bundle with the same document and a plain folder as root: the time until the first output, and until the
// command has ended, which for strata includes taking the container away. Each ratio is the median of the rounds', with
// the first and third quartile.
func BenchmarkRunProcess(b *testing.B) { benchRun(b, nil, nil) }

// BenchmarkRunProcessWhole is BenchmarkRunProcess with limits, a folder of the host and a network. That of strata's
// container has a way out; the runtimes' has none.
func BenchmarkRunProcessWhole(b *testing.B) {
	treetest.Need(b, inPath("slirp4netns"), "slirp4netns", "apt-get install slirp4netns")
	benchRun(b, []string{"-m", "512m", "--cpus", "1", "--pids-limit", "100", "-v", b.TempDir() + ":/data"},
		[]string{"--network", "user"})
}

func inPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// benchRun is BenchmarkRunProcess with flags of the document, and of strata run alone.
func benchRun(b *testing.B, document, run []string) {
	treetest.NeedRoot(b, "to run containers")
	busybox, err := exec.LookPath("busybox")
	treetest.Need(b, err == nil, "busybox", "apt-get install busybox-static")
	program, err := os.ReadFile(busybox)
	if err != nil {
		b.Fatal(err)
	}
	strata, work := bootimagetest.Strata(b), b.TempDir()
	tar := filepath.Join(work, "root.tar")
	root := treetest.Tar(b, treetest.Entry{Name: "bin/busybox", Mode: 0o755, Body: string(program)})
	if err := os.WriteFile(tar, root, 0o600); err != nil {
		b.Fatal(err)
	}
	env := append(os.Environ(), "STRATA_STATE_DIR="+filepath.Join(work, "state"))
	bundle := benchBundle(b, work, tar, env, slices.Concat([]string{strata, "spec"}, document, benchProgram(tar)))
	ours := slices.Concat([]string{strata, "run", "--isolation=process"}, document, run, benchProgram(tar))
	commands := map[string]func() []string{"strata": func() []string { return ours }}
	addRuntimes(commands, bundle)
	type taken struct{ first, whole time.Duration }
	times := map[string][]taken{}
	for b.Loop() {
		for range benchRounds + 1 {
			for name, args := range commands {
				first, whole := firstOutput(b, env, args()...)
				times[name] = append(times[name], taken{first, whole})
			}
		}
	}
	for _, runtime := range []string{"runc", "crun"} {
		var first, whole []float64
		for i, t := range times[runtime] {
			if i > 0 {
				first = append(first, float64(times["strata"][i].first)/float64(t.first))
				whole = append(whole, float64(times["strata"][i].whole)/float64(t.whole))
			}
		}
		if len(first) > 0 {
			reportQuartiles(b, "×"+runtime, first)
			reportQuartiles(b, "×"+runtime+"-to-the-end", whole)
		}
	}
}

func benchProgram(tar string) []string { return []string{tar, "/bin/busybox", "echo", "x"} }

// addRuntimes adds the commands that run a bundle by the runtimes of this system.
func addRuntimes(commands map[string]func() []string, bundle string) {
	n := 0
	for _, runtime := range []string{"runc", "crun"} {
		path, err := exec.LookPath(runtime)
		if err != nil {
			continue
		}
		commands[runtime] = func() []string {
			n++
			run := []string{path, "run", "--bundle", bundle, fmt.Sprintf("bench-%d-%d", os.Getpid(), n)}
			// crun refuses a host with cgroups of both versions, unless it does not see those of the second.
			if runtime == "crun" && exists("/sys/fs/cgroup/unified") {
				hide := []string{"unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/unified; exec "$@"`, "-"}
				run = append(hide, run...)
			}
			return run
		}
	}
}

// reportQuartiles reports the median of ratios, and the quartiles.
func reportQuartiles(b *testing.B, unit string, ratios []float64) {
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], unit)
	b.ReportMetric(ratios[len(ratios)/4], unit+"-q1")
	b.ReportMetric(ratios[len(ratios)*3/4], unit+"-q3")
}

// benchBundle makes a bundle of the document that a command prints, as far as a runtime alone takes it.
func benchBundle(b *testing.B, work, tar string, env, spec []string) string {
	b.Helper()
	cmd := exec.Command(spec[0], spec[1:]...)
	cmd.Env = env
	text, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		b.Fatal(err)
	}
	doc["root"] = map[string]any{"path": "rootfs"}
	delete(doc["process"].(map[string]any), "rlimits") // which strata lowers to what this system allows
	bundle := filepath.Join(work, "bundle")
	root := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(root, 0o700); err != nil {
		b.Fatal(err)
	}
	treetest.Untar(b, tar, root)
	if text, err = json.Marshal(doc); err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	return bundle
}

// firstOutput runs a program that says something, and returns how long it took until then and until it had ended.
func firstOutput(b *testing.B, env []string, args ...string) (first, whole time.Duration) {
	b.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = env
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_, err = io.ReadFull(out, make([]byte, 1))
	first = time.Since(began)
	_, _ = io.Copy(io.Discard, out)
	if werr := cmd.Wait(); err != nil || werr != nil {
		b.Fatalf("%q: %v, %v", args, err, werr)
	}
	return first, time.Since(began)
}
