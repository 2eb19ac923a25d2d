package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// maskScript tells which of the places that are masked or read-only are not.
const maskScript = `echo it' 'ran
for f in /proc/kcore /proc/keys /proc/interrupts /proc/timer_list /opt/secret; do [ -z "$(head -c 1 $f 2>/dev/null)" ] || echo $f is open; done
for d in /proc/acpi /sys/firmware /opt/dir; do [ -z "$(ls $d 2>/dev/null)" ] || echo $d is open; done
for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/uevent_helper; do [ -e $f ] && (: >>$f) 2>/dev/null && echo $f can be written; done
for d in /opt/fixed /opt/data /; do touch $d/new 2>/dev/null && echo $d can be written; done; true`

// maskDocument is a document that masks places of the image's, has a read-only bind and a read-only root.
func (f fieldBox) maskDocument() map[string]any {
	doc := f.document("/bin/sh", "-c", maskScript)
	for path, value := range map[string]any{"linux.maskedPaths[]": "/opt/secret", "linux.readonlyPaths[]": "/opt/fixed",
		"root.readonly": true, "mounts[]": f.value(`{"destination": "/opt/data", "type": "bind", "source": "$DATA",
			"options": ["rbind", "ro"]}`)} {
		setField(doc, path, value)
	}
	setField(doc, "linux.maskedPaths[]", "/opt/dir")
	return doc
}

// TestMountsOfRuntimeFail: each mount fails that the runtime makes for a container, one at a time. Then the program is
// not started, or all is masked and read-only as if none had failed.
func TestMountsOfRuntimeFail(t *testing.T) {
	strace, crun := need(t, "strace", "strace"), need(t, "crun", "crun")
	c, root := processBox(t)
	f := newFieldBox(t, c, root)
	dir := t.TempDir()
	log, wrapper, names := filepath.Join(dir, "log"), filepath.Join(dir, "crun"), filepath.Join(dir, "names")
	file := f.file(f.maskDocument())
	failed := 0
	for n := 1; ; n++ {
		text := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%[5]s\ncase \" $* \" in *\" run \"*|*\" create \"*) exec %[1]s "+
			"-D -f -qq -o %s -e trace=mount -e inject=mount:error=EIO:when=%d %s \"$@\";; esac\nexec %[4]s \"$@\"\n", strace, log, n, crun, names)
		if err := os.WriteFile(wrapper, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := f.cmd("run", "--isolation=process", "--spec", file, f.root)
		cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		calls, rerr := os.ReadFile(log)
		if rerr != nil {
			t.Fatalf("the runtime was not started by way of %s: %v: %s", wrapper, rerr, out)
		}
		ran := err == nil && strings.TrimSpace(string(out)) == "it ran"
		if !ran && (err == nil || !strings.HasPrefix(string(out), "strata: run /bin/sh: start ")) {
			t.Errorf("mount %d fails: %v, %s\n%s", n, err, out, injectedCall(string(calls)))
		}
		if injectedCall(string(calls)) == "" {
			if !ran {
				t.Errorf("nothing fails, and the program is not started: %v, %s", err, out)
			}
			break
		}
		failed++
	}
	all, err := os.ReadFile(names)
	if n := groupsLeft(t, string(all)); n > 0 || err != nil {
		t.Errorf("%d control groups are left, %v", n, err)
	}
	if failed < 40 {
		t.Errorf("%d mounts failed", failed)
	}
}

// checkUnreachableMasks: a place to be masked or read-only that is there, and cannot be reached, is an error. One that is
// not there is none: there is nothing to mask.
func (f fieldBox) checkUnreachableMasks() {
	f.t.Helper()
	for _, field := range []string{"linux.maskedPaths[]", "linux.readonlyPaths[]"} {
		for path, want := range map[string]string{"/opt/loop": "symbolic links", "/opt/file/x": "not a directory",
			"/opt/none": "it ran"} {
			doc := f.maskDocument()
			setField(doc, field, path)
			out, err := f.cmd(append(append([]string{"run"}, f.flags...), "--spec", f.file(doc), f.root)...).CombinedOutput()
			ran := err == nil && strings.TrimSpace(string(out)) == "it ran" // and nothing is open
			if ran != (want == "it ran") || !strings.Contains(string(out), want) ||
				err != nil && strings.Contains(string(out), "it ran") {
				f.t.Errorf("%s of %s: %v, %s, want %q", field, path, err, out, want)
			}
		}
	}
}

// injectedCall is the call that failed, with its arguments, or "".
func injectedCall(trace string) string {
	for line := range strings.Lines(trace) {
		if strings.Contains(line, "(INJECTED)") {
			return line
		}
	}
	return ""
}
