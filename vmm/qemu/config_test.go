package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
)

func TestConfigsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for want, c := range map[string]Config{
		"absolute":    {Dir: "vm"},
		"machine id":  {Dir: dir, ID: "a,b"},
		"memory":      {Dir: dir, MemoryMiB: 16},
		"CPUs":        {Dir: dir, CPUs: -1},
		"accelerator": {Dir: dir, Accel: "hvf"},
		"transport":   {Dir: dir, Transport: "smoke"},
		"ports":       {Dir: dir, ExecPorts: 31},
		"newline":     {Dir: dir, Cmdline: []string{"quiet\ninit=/bin/sh"}},
	} {
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error about %q", c, err, want)
		}
	}
}

func TestArguments(t *testing.T) {
	c, err := Config{Dir: "/state/odd,name", Kernel: "/k,1", Initrd: "/i,1", Cmdline: []string{"quiet"},
		ExecPorts: 1}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != "strata" {
		t.Errorf("an odd directory gives the id %q", c.ID)
	}
	v := &vsockDevice{cid: 77, token: gcs.NewToken()}
	args := c.arguments(AccelTCG, v)
	value := func(option string) string {
		i := slices.Index(args, option)
		if i < 0 || i+1 == len(args) {
			t.Fatalf("there is no %s in %q", option, args)
		}
		return args[i+1]
	}
	for option, want := range map[string]string{
		"-kernel": "/proc/self/fd/6", "-initrd": "/proc/self/fd/7", "-nic": "none", "-display": "none",
		"-append": "console=ttyS0 swiotlb=noforce strata.pmem=pci:0000:00:10.0 strata.vsock=" + gcs.TokenDigest(v.token) +
			" quiet",
		"-sandbox": "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	} {
		if got := value(option); got != want {
			t.Errorf("%s %q, want %q", option, got, want)
		}
	}
	for _, tt := range []struct {
		accel string
		cpus  int
		want  string
	}{{AccelTCG, 1, "cpus=1,maxcpus=2"}, {AccelTCG, 2, "2"}, {AccelKVM, 1, "1"}} {
		if got := processors(tt.accel, tt.cpus); got != tt.want {
			t.Errorf("%d CPUs by %s are -smp %s, want %s", tt.cpus, tt.accel, got, tt.want)
		}
	}
	if !slices.Contains(args, "vhost-vsock-pci,addr=4,guest-cid=77,vhostfd=10,disable-legacy=on") {
		t.Errorf("there is no vsock device, or its descriptor is not the last one: %q", args)
	}
	if !slices.Contains(args, "-nodefaults") || !slices.Contains(args, "-no-user-config") {
		t.Errorf("QEMU gets its default devices: %q", args)
	}
	// QEMU opens nothing by its name.
	for _, name := range []string{"odd,name", "/k,1", "/i,1"} {
		if strings.Contains(strings.Join(args, " "), name) {
			t.Errorf("%s is in an option: %q", name, args)
		}
	}
}

func TestRemoveFilesLeavesOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	target := filepath.Join(t.TempDir(), "layer.vhd")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, attachedDir), 0o700), os.WriteFile(target, nil, 0o600),
		os.Symlink(target, filepath.Join(dir, attachedDir, "x.0")), os.WriteFile(filepath.Join(dir, "journal"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, machineFile), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := removeState(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "journal" {
		t.Errorf("left: %v %v", left, err)
	}
	if _, err := os.Stat(target); err != nil {
		t.Errorf("a layer went with the machine: %v", err)
	}
}
