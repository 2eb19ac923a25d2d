package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/vhd"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
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
	c, err := Config{Dir: "/state/odd,name", Kernel: "/k,1", Initrd: "/i,1", Cmdline: []string{"quiet"}, ExecPorts: 1}.withDefaults()
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
		"-kernel": "/k,1", "-initrd": "/i,1", "-nic": "none", "-display": "none",
		"-append":  "console=ttyS0 swiotlb=noforce strata.pmem=pci:0000:00:10.0 strata.vsock=" + gcs.TokenDigest(v.token) + " quiet",
		"-sandbox": "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	} {
		if got := value(option); got != want {
			t.Errorf("%s %q, want %q", option, got, want)
		}
	}
	if !slices.Contains(args, "vhost-vsock-pci,addr=4,guest-cid=77,vhostfd=6,disable-legacy=on") {
		t.Errorf("there is no vsock device, or its descriptor is not the last one: %q", args)
	}
	if !slices.Contains(args, "-nodefaults") || !slices.Contains(args, "-no-user-config") {
		t.Errorf("QEMU gets its default devices: %q", args)
	}
	// The state directory is where QEMU runs; its name is in no option.
	if strings.Contains(strings.Join(args, " "), "odd,name") {
		t.Errorf("the state directory is an option: %q", args)
	}
}

func TestBlockNodes(t *testing.T) {
	dir := t.TempDir()
	size := int64(1 << 20)
	path := filepath.Join(dir, "a,b=\"c\".vhd")
	footer, err := vhd.NewFooter(size)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(make([]byte, size), footer.Marshal()...), 0o600); err != nil {
		t.Fatal(err)
	}
	node, err := diskNode(vmm.SCSIDisk{Path: path, ReadOnly: true}, "n", dir)
	if err != nil {
		t.Fatal(err)
	}
	file := node["file"].(blockNode)
	for _, n := range []blockNode{node, file} {
		if n["read-only"] != true || n["force-share"] != true || n["auto-read-only"] != false {
			t.Errorf("a read-only layer is opened with %v", n)
		}
	}
	if node["driver"] != "raw" || node["size"] != size || file["filename"] != path {
		t.Errorf("a fixed VHD is opened with %v", node)
	}
	node, err = diskNode(vmm.SCSIDisk{Path: path}, "n", dir)
	if err != nil || node["force-share"] != nil || node["read-only"] != false {
		t.Errorf("a writable disk is opened with %v %v", node, err)
	}
}

func TestCompositeDescriptor(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	path := filepath.Join(files, "a\"\n.raw")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{{Path: path, Offset: 512, Length: 1024}, {Length: 512}, {Path: path, Length: 4096}}}
	for range 2 { // the second time over what a process that died in between left
		if _, err := diskNode(d, "n", dir); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "n.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "RW 2 FLAT \"n.0\" 1\nRW 1 FLAT \"n.zero\" 0\nRW 8 FLAT \"n.0\" 0\n"; !strings.HasSuffix(string(b), "Flat\"\n"+want) {
		t.Errorf("descriptor:\n%s", b)
	}
	if err := removeDescriptor(dir, "n"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	// One that fails in the middle leaves nothing.
	d.Extents = append(d.Extents, vmm.Extent{Path: path + "x", Length: 512})
	if _, err := diskNode(d, "n", dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
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
