package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// status reads the fields of /proc/PID/status.
func status(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// TestQEMUHasNoRights: QEMU that root starts runs as a user of its own without capabilities, each machine
// as another one, and takes disks all the same that only root may open.
func TestQEMUHasNoRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("for root there is something to give up: sudo go test")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{"0": true}
	for i := range 2 {
		m, _, _ := bare(t)
		s := status(t, m.proc.pid)
		uid, _, _ := strings.Cut(s["Uid"], " ")
		if seen[uid] || s["Uid"] != strings.Join([]string{uid, uid, uid, uid}, " ") {
			t.Errorf("machine %d runs as user %s", i, s["Uid"])
		}
		seen[uid] = true
		if gid, _, _ := strings.Cut(s["Gid"], " "); gid != uid {
			t.Errorf("machine %d runs in group %s", i, s["Gid"])
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if strings.Trim(s[set], "0") != "" {
				t.Errorf("machine %d has the capabilities %s %s", i, set, s[set])
			}
		}
		if s["NoNewPrivs"] != "1" || s["Seccomp"] != "2" {
			t.Errorf("machine %d: NoNewPrivs %s, Seccomp %s", i, s["NoNewPrivs"], s["Seccomp"])
		}
		if err := m.qmp.do(t.Context(), "cont", nil, nil); err != nil { // a paused QEMU keeps descriptors
			t.Fatal(err)
		}
		for _, ro := range []bool{true, false} {
			d := vmm.SCSIDisk{Path: diskFile(t, dir, fmt.Sprintf("%d-%t.vhd", i, ro), 1<<20), ReadOnly: ro}
			if err := os.Chmod(d.Path, 0o600); err != nil {
				t.Fatal(err)
			}
			apply(t, m, add(d))
			apply(t, m, remove(d))
		}
		// Nothing that was lent stays open.
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.proc.pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
				t.Errorf("QEMU still has %s open", target)
			}
		}
	}
}
