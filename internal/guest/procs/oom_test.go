//go:build linux

package procs

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMemoryReached: the kernel's word for it is found in control groups of either version.
func TestMemoryReached(t *testing.T) {
	for file, text := range map[string]string{
		"c/memory.events":             "low 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
		"memory/c/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
	} {
		root := t.TempDir()
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if memoryReached(root, "/c") {
			t.Errorf("%s: without a file", file)
		}
		writeFile(t, path, "max 7\noom_kill 0\n")
		if memoryReached(root, "/c") {
			t.Errorf("%s: nothing was killed", file)
		}
		writeFile(t, path, text)
		if !memoryReached(root, "/c") {
			t.Errorf("%s: not found", file)
		}
	}
}
