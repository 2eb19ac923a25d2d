package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// runtimeFaults are ways in which a call of the runtime fails, as lines of a script that has it as "$@".
var runtimeFaults = []struct{ name, script string }{
	{"refuses", "exit 1"},
	{"fails after effect", `"$@"; exit 1`},
	{"is killed before", "kill -KILL $$"},
	{"is killed after effect", `"$@"; kill -KILL $$`},
}

// mayFail are the commands of a life that fail with a step of the runtime. After "run" there is no container.
var mayFail = map[string]string{"exec": "exec", "pause": "pause unpause", "resume": "unpause", "update": "update",
	"delete": ""}

// TestStepsOfRuntimeFail: each step that the runtime makes in the life of a container fails, one at a time and in every
// way. The command says so, or it made no difference; whatever it was, the container is removed, nothing is left of it,
// and its name can be used again.
func TestStepsOfRuntimeFail(t *testing.T) {
	crun := need(t, "crun", "crun")
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	c.run("ps") // makes the state directory
	dir := t.TempDir()
	wrapper, calls, path := filepath.Join(dir, "crun"), filepath.Join(dir, "calls"), "PATH="+dir+":"+os.Getenv("PATH")
	fault := func(n int, script string) {
		t.Helper()
		text := fmt.Sprintf("#!/bin/sh\nset -- %s \"$@\"\necho \"$*\" >>%s\n[ $(wc -l <%[2]s) != %d ] || { %s; }\n"+
			"exec \"$@\"\n", crun, calls, n, script)
		if err := os.WriteFile(wrapper, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(calls, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	life := func() (failed []string) {
		for _, args := range [][]string{
			{"run", "-d", "--isolation=process", "--name", "web", root, "/bin/busybox", "sleep", "1000"},
			{"exec", "web", "/bin/busybox", "true"}, {"pause", "web"}, {"unpause", "web"},
			{"update", "--pids-limit", "50", "web"},
			{"stop", "-t", "0", "web"}, {"start", "web"}, {"kill", "web"}, {"wait", "web"},
		} {
			cmd := c.cmd(args...)
			cmd.Env = append(cmd.Env, path)
			if out, err := cmd.CombinedOutput(); err != nil {
				if !strings.Contains(string(out), "strata: ") && args[0] != "exec" {
					t.Errorf("%q fails and does not say so: %v, %s", args[0], err, out)
				}
				failed = append(failed, fmt.Sprintf("%s: %s", args[0], strings.TrimSpace(string(out))))
			}
		}
		cmd := c.cmd("rm", "-f", "web")
		cmd.Env = append(cmd.Env, path)
		out, err := cmd.CombinedOutput()
		if err != nil { // it can be tried again
			failed = append(failed, fmt.Sprintf("rm: %s", strings.TrimSpace(string(out))))
			if out, err := c.cmd("rm", "-f", "web").CombinedOutput(); err != nil && c.run("ps", "-aq") != "" {
				t.Errorf("removed again: %v, %s", err, out)
			}
		}
		return failed
	}
	fault(0, ":")
	if failed := life(); len(failed) > 0 {
		t.Fatalf("without a fault: %q", failed)
	}
	none := c.rest(c.holdings)
	b, err := os.ReadFile(calls)
	steps := strings.Split(strings.TrimSpace(string(b)), "\n")
	if err != nil || len(steps) < 8 {
		t.Fatalf("the runtime was called %d times: %q, %v", len(steps), steps, err)
	}
	for n, step := range steps {
		for _, f := range runtimeFaults {
			fault(n+1, f.script)
			failed := life()
			log, err := os.ReadFile(calls)
			if err != nil {
				t.Fatal(err)
			}
			if n := groupsLeft(t, string(log)); n > 0 {
				t.Errorf("%s: it %s: %d cgroups are left", step, f.name, n)
			}
			if left := c.rest(c.holdings); left != none {
				t.Errorf("%s: it %s: left are %s, want %s; failed: %q", step, f.name, left, none, failed)
			}
			verb, _, _ := strings.Cut(strings.TrimSpace(step[strings.Index(step, "cgroupfs")+len("cgroupfs"):]), " ")
			for _, what := range failed {
				name, _, _ := strings.Cut(what, ": ")
				if allowed, ok := mayFail[verb]; ok && !strings.Contains(" "+allowed+" ", " "+name+" ") {
					t.Errorf("%s: it %s: %s", step, f.name, what)
				}
			}
		}
	}
}

// groupsLeft counts the cgroups that are left of containers with which the runtime was called, whose folders name them.
func groupsLeft(t *testing.T, calls string) (n int) {
	t.Helper()
	for _, m := range containerFolder.FindAllStringSubmatch(calls, -1) {
		for _, pattern := range []string{"/sys/fs/cgroup/strata-", "/sys/fs/cgroup/*/strata-"} {
			groups, err := filepath.Glob(pattern + m[1])
			if err != nil {
				t.Fatal(err)
			}
			n += len(groups)
		}
	}
	return n
}

// containerFolder is a container's folder among the arguments of the runtime.
var containerFolder = regexp.MustCompile(`/host/containers/([0-9a-f]+)/state`)
