package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestOptions: the runtime's options size a VM that nobody sizes, by a file that ctr names; what is wrong in them is
// refused before a VM is started, and a pod's by what containerd's configuration says.
func TestOptions(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	file := filepath.Join(t.TempDir(), "shim.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const most = 300
	write("memory = " + strconv.Itoa(most) + "\ncpus = 1\naccel = 'tcg'\ndebug = true\n")
	r := d.must(t, 0, append(run("--rm", "--runtime-config-path", file), image, "options", "sh", "-c",
		"busybox nproc; busybox awk '/^MemTotal/ {print $2}' /proc/meminfo")...)
	cpus, text, _ := strings.Cut(strings.TrimSpace(r.stdout), "\n")
	if kib, err := strconv.Atoi(text); cpus != "1" || err != nil || kib > most<<10 || kib < most<<9 {
		t.Errorf("the VM has %q processors and %q KiB, want 1 and about %d MiB: %v", cpus, text, most, err)
	}
	write("memroy = 300\n")
	r = d.ctr(nil, append(run("--rm", "--runtime-config-path", file), image, "misspelt", "echo", "ran")...)
	if r.code == 0 || !strings.Contains(r.stderr, file+", line 1: memroy is not known") {
		t.Errorf("exit code %d, want an error that names the key: %s", r.code, r.stderr)
	}
}

// TestPodOptions: a pod whose runtime has wrong options in containerd's configuration is an error with either
// sandboxer, and nothing is left of it.
func TestPodOptions(t *testing.T) {
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) {
			k := needKube(t, handler)
			pod := k.document(t, "options", object{"metadata": object{"name": "o", "namespace": "default", "uid": "o"},
				"log_directory": k.dir, "linux": object{}})
			out, err := exec.CommandContext(t.Context(), k.bin+"/crictl", "--config", os.DevNull, "--timeout",
				limit.String(), "--runtime-endpoint", "unix://"+k.daemon.dir+"/c.sock", "runp", "--runtime",
				k.handler+"-misspelt", pod).CombinedOutput()
			const want = "containerd's configuration, line 1: memroy is not known"
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%v, want an error with %q: %s", err, want, out)
			}
			k.clean(t)
			released(t, k.addresses())
		})
	}
}
