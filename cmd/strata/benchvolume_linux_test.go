package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// Sizes of what BenchmarkVolume reads and writes in a round.
const (
	volumeFile  = 16 << 20
	volumeFiles = 500
)

// volumeTree has, for each round, a large file and many small ones. Nothing is read twice, so no cache of the guest's
// knows it.
func volumeTree() (entries []treetest.Entry) {
	large := strings.Repeat("all work and no play ", volumeFile/21)
	for round := range vmRounds + 1 {
		entries = append(entries, treetest.Entry{Name: fmt.Sprintf("tree/large%d", round), Body: large})
		for i := range volumeFiles {
			entries = append(entries, treetest.Entry{Name: fmt.Sprintf("tree/small%d/%d/%d", round, i%20, i), Body: "small"})
		}
	}
	return entries
}

// volumeWork is what is measured, with $at for the place and $n for the round. It prints how long it took, in seconds.
var volumeWork = map[string]string{
	"read": "cat $at/tree/large$n >/dev/null",
	"walk": "find $at/tree/small$n -exec stat -c %s {} + >/dev/null",
	"small": "mkdir $at/new$n; i=0; while [ $i -lt 500 ]; do echo small >$at/new$n/$i; i=$((i+1)); done; " +
		"cat $at/new$n/* >/dev/null",
}

// BenchmarkVolume compares a folder of the host as a container in a VM has it, by virtiofs, with the disks of its root
// (EROFS for what is read, the scratch for what is written) and with the same folder in a container of this system: to
// read a large file, to walk over small ones, to write and read small ones. Measured is the work inside the containers,
// in turns.
func BenchmarkVolume(b *testing.B) {
	tree := volumeTree()
	entries := tree
	for name := range strings.FieldsSeq("sh cat find stat mkdir") {
		entries = append(entries, treetest.Entry{Name: "bin/" + name, Type: '2', Link: "busybox"})
	}
	v, work := newVMBench(b, entries...)
	tar, data := filepath.Join(work, "tree.tar"), filepath.Join(work, "data")
	if err := os.WriteFile(tar, treetest.Tar(b, tree...), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(data, 0o755); err != nil {
		b.Fatal(err)
	}
	treetest.Untar(b, tar, data)
	v.run("vm", "start", "--memory", "1G")
	b.Cleanup(func() { v.run("vm", "stop", "--force") })
	sleep := []string{"-v", data + ":/data", "bench", "/bin/busybox", "sleep", "100000"}
	v.run(append([]string{"run", "-d", "--name", "guest", "--vm", "default"}, sleep...)...)
	v.run(append([]string{"run", "-d", "--name", "here", "--isolation=process"}, sleep...)...)
	b.Cleanup(func() { v.run("rm", "-f", "guest", "here") })
	// inside measures the work of a round in a container.
	inside := func(name, at, script string, round int) float64 {
		text := fmt.Sprintf("at=%s; n=%d; read a _ </proc/uptime; %s; read b _ </proc/uptime; echo $a $b", at, round, script)
		var began, ended float64
		if _, err := fmt.Sscan(v.run("exec", name, "/bin/sh", "-c", text), &began, &ended); err != nil {
			b.Fatalf("%s: %v", text, err)
		}
		return max(ended-began, 0.01) // what /proc/uptime can tell
	}
	for b.Loop() {
		for what, script := range volumeWork {
			var disk, bind []float64
			for round := range vmRounds + 1 {
				volume := inside("guest", "/data", script, round)
				v.run("exec", "here", "/bin/busybox", "rm", "-rf", fmt.Sprintf("/data/new%d", round))
				onDisk, here := inside("guest", "", script, round), inside("here", "/data", script, round)
				if round > 0 { // the first warms up
					disk, bind = append(disk, volume/onDisk), append(bind, volume/here)
				}
			}
			reportQuartiles(b, "×"+what+"-disk", disk)
			reportQuartiles(b, "×"+what+"-bind", bind)
		}
	}
}
