package test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// Environment variables: the first has critest run, which takes an hour, and is a regular expression of the names of
// its cases; the second is the handler beside runc: strata, which is the default, or strata-shim.
const (
	envCritest        = "STRATA_CRITEST"
	envCritestHandler = "STRATA_CRITEST_HANDLER"
)

// critestDiffers are the cases of critest that pass with runc and do not with the runtime, by a part of their names,
// and why.
var critestDiffers = map[string]string{
	"runtime should support HostPID":                     "a VM has not the processes of its host",
	"runtime should support HostIpc is true":             "nor its shared memory",
	"runtime should support HostNetwork is true":         "nor its network",
	"runtime should support portforward in host network": "nor its network",
	"should support non-recursive readonly mounts":       "a share is read-only with all that is mounted below it",
	"mount with 'rshared' should support propagation":    "what is mounted later on one side is not seen on the other",
	"mount with 'rslave' should support propagation":     "what is mounted later on one side is not seen on the other",
}

// TestCritest runs the tests of CRI's own project with runc and with the runtime, on the same containerd and the same
// images: what passes with runc has to pass with the runtime, but for critestDiffers.
func TestCritest(t *testing.T) {
	focus := os.Getenv(envCritest)
	if focus == "" {
		t.Skip("takes an hour: make critest")
	}
	handler := cmp.Or(os.Getenv(envCritestHandler), "strata")
	if !slices.Contains(handlers, handler) {
		t.Fatalf("%s=%s: want one of %q", envCritestHandler, handler, handlers)
	}
	for _, program := range []string{"runc", "iptables", "ipcmk"} {
		if _, err := exec.LookPath(program); err != nil {
			lacking(t, err.Error())
		}
	}
	k := needKube(t, handler)
	if err := build(k.bin, "daemon", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"github.com/containernetworking/plugins/plugins/meta/portmap"); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "test", "-C", "daemon", "-c", "-o", k.bin+"/critest", "sigs.k8s.io/cri-tools/cmd/critest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build critest: %v\n%s", err, out)
	}
	plugins(t, k.bin, k.daemon.dir+"/cni", k.addresses(), `{"type": "portmap", "capabilities": {"portMappings": true}}`)
	k.serveCritest(t)
	want, got := k.critest(t, "runc", focus), k.critest(t, handler, focus)
	k.clean(t)
	known := maps.Clone(critestDiffers)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != "passed" || got[name] == "passed" {
			continue
		}
		differs := false
		for part := range critestDiffers {
			if strings.Contains(name, part) {
				differs = true
				delete(known, part)
			}
		}
		if !differs {
			t.Errorf("passes with runc, but not with the runtime: %s: %s", name,
				cmp.Or(got[name], "it did not run"))
		}
	}
	for part, why := range known {
		if focus == "." {
			t.Errorf("no case that has %q in its name differs any more (%s)", part, why)
		}
	}
}

// critest runs critest with a runtime and returns what became of each case that was not skipped. What it and containerd
// said is kept by go test -artifacts.
func (k kube) critest(t *testing.T, runtime, focus string) map[string]string {
	t.Helper()
	deadline, ok := t.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Hour)
	}
	deadline = deadline.Add(-2 * time.Minute) // leaves time for cleanup and the report
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	socket, kept := "unix://"+k.daemon.dir+"/c.sock", t.ArtifactDir()+"/"+runtime
	cmd := exec.CommandContext(ctx, k.bin+"/critest", "-config", os.DevNull, "-runtime-endpoint", socket,
		"-image-endpoint", socket, "-runtime-handler", runtime, "-test.timeout", "0", "-ginkgo.timeout",
		time.Until(deadline).Round(time.Second).String(),
		"-ginkgo.seed", "1", "-ginkgo.no-color", "-ginkgo.focus", focus, "-ginkgo.json-report", kept+".json")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it reports what it has run so far
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput() // an error, too, when a case fails
	t.Logf("critest with %s: %v", runtime, err)
	log, err := os.ReadFile(k.daemon.dir + "/log")
	err = errors.Join(err, os.WriteFile(kept+".log", out, 0o600), os.WriteFile(kept+"-containerd.log", log, 0o600))
	if err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(kept + ".json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cases := critestCases(t, runtime, b)
	if len(cases) == 0 {
		t.Fatalf("no case ran\n%s", out)
	}
	return cases
}

// critestCases reads a report of critest.
func critestCases(t *testing.T, runtime string, report []byte) map[string]string {
	t.Helper()
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts    []string
			LeafNodeType, LeafNodeText string
			State                      string
			RunTime                    time.Duration
			Failure                    struct{ Message string }
		}
	}
	if err := json.Unmarshal(report, &suites); err != nil {
		t.Fatal(err)
	}
	cases, counts := map[string]string{}, map[string]int{}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " ")
			if r.LeafNodeType != "It" {
				if r.State != "passed" {
					t.Errorf("%s %s: %s: %s", r.LeafNodeType, name, r.State, cut(r.Failure.Message))
				}
				continue
			}
			counts[r.State]++
			if r.State == "skipped" && r.Failure.Message == "" {
				continue // by the expression
			}
			cases[name] = strings.TrimSpace(r.State + " " + cut(r.Failure.Message))
			t.Logf("%-6s %-8s %6.1f s  %s", runtime, r.State, r.RunTime.Seconds(), name)
			if r.State != "passed" {
				t.Logf("       %s", cut(r.Failure.Message))
			}
		}
	}
	t.Logf("critest with %s: %v", runtime, counts)
	return cases
}

// cut is the beginning of a message, in a line.
func cut(message string) string {
	return strings.Join(strings.Fields(message[:min(len(message), 500)]), " ")
}
