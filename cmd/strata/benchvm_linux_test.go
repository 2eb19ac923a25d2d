package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

const vmRounds = 5

// vmBench is a running VM and containers to compare.
type vmBench struct {
	b      *testing.B
	strata string
	env    []string
}

func (v vmBench) run(args ...string) string {
	v.b.Helper()
	cmd := exec.Command(v.strata, args...)
	cmd.Env = v.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		v.b.Fatalf("strata %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// took returns how long a command takes.
func (v vmBench) took(args ...string) func() float64 {
	return func() float64 {
		began := time.Now()
		v.run(args...)
		return time.Since(began).Seconds()
	}
}

// compare reports the ratio of one to another, measured in turns.
func (v vmBench) compare(unit string, one, other func() float64) {
	v.b.Helper()
	one()
	other()
	var ratios []float64
	for range vmRounds {
		ratios = append(ratios, one()/other())
	}
	reportQuartiles(v.b, unit, ratios)
}

// newVMBench has an image, bench, with busybox and what else is given.
func newVMBench(b *testing.B, more ...treetest.Entry) (v vmBench, work string) {
	b.Helper()
	busybox, err := exec.LookPath("busybox")
	treetest.Need(b, err == nil, "busybox", "apt-get install busybox-static")
	program, err := os.ReadFile(busybox)
	if err != nil {
		b.Fatal(err)
	}
	work = b.TempDir()
	v = vmBench{b: b, strata: bootimagetest.Strata(b)}
	bootimagetest.ImageOf(b, v.strata)
	v.env = append(os.Environ(), "STRATA_STATE_DIR="+filepath.Join(work, "state"), "STRATA_INIT="+v.strata)
	entries := append([]treetest.Entry{{Name: "bin/busybox", Mode: 0o755, Body: string(program)}}, more...)
	tar := filepath.Join(work, "root.tar")
	if err := os.WriteFile(tar, treetest.Tar(b, entries...), 0o600); err != nil {
		b.Fatal(err)
	}
	v.run("import", "--name", "bench", tar)
	return v, work
}

// BenchmarkVM compares, each in turns: a program beside another in a VM that runs, with one in a container of this
// system, and with one in the VM itself, beside no container; a container in that VM with one of this system; and one
// with a network of its own with one without.
func BenchmarkVM(b *testing.B) {
	v, _ := newVMBench(b)
	v.run("vm", "start")
	b.Cleanup(func() { v.run("vm", "stop", "--force") })
	sleep := []string{"bench", "/bin/busybox", "sleep", "100000"}
	v.run(append([]string{"run", "-d", "--name", "guest", "--vm", "default"}, sleep...)...)
	v.run(append([]string{"run", "-d", "--name", "here", "--isolation=process"}, sleep...)...)
	b.Cleanup(func() { v.run("rm", "-f", "guest", "here") })
	echo := []string{"bench", "/bin/busybox", "echo", "x"}
	in := append([]string{"run", "--vm", "default"}, echo...)
	for b.Loop() {
		v.compare("×exec-process", v.took("exec", "guest", "/bin/busybox", "true"),
			v.took("exec", "here", "/bin/busybox", "true"))
		v.compare("×exec-in-vm", v.took("exec", "guest", "/bin/busybox", "true"),
			v.took("exec", "--in-vm", "--", "/sbin/catatonit", "-V"))
		v.compare("×run-process", v.took(in...), v.took(append([]string{"run", "--isolation=process"}, echo...)...))
		v.compare("×run-no-network", v.took(append([]string{"run", "--network", "user", "--vm", "default"}, echo...)...),
			v.took(in...))
	}
}

// BenchmarkOwnVM compares a container in a VM of its own, with a network and a folder of the host, with one without
// both: from the command to its end, which takes the VM away.
func BenchmarkOwnVM(b *testing.B) {
	v, _ := newVMBench(b)
	echo := []string{"bench", "/bin/busybox", "echo", "x"}
	for b.Loop() {
		v.compare("×run-plain", v.took(append([]string{"run", "--network", "user", "-v", b.TempDir() + ":/data:ro"}, echo...)...),
			v.took(append([]string{"run"}, echo...)...))
	}
}
