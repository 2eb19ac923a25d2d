package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// attached lists what a VM has, as its state directory says, and counts the Changes by which it got all.
func (d *daemon) attached(t *testing.T, id string) (disks []vmm.SCSIDisk, shares, changes int) {
	t.Helper()
	status, err := uvm.ReadStatus(d.vms() + "/default/vms/" + id)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range status.Resources {
		switch device := r.What.Device.(type) {
		case vmm.SCSIDisk:
			disks = append(disks, device)
		case vmm.VirtioFSShare:
			shares++
		}
	}
	return disks, shares, len(status.Resources)
}

// onHost fails when something of the container is mounted on the host.
func (d *daemon) onHost(t *testing.T) {
	t.Helper()
	for _, what := range d.left(t) {
		if strings.HasPrefix(what, "mount ") || strings.HasPrefix(what, "loop ") {
			t.Errorf("on the host there is a %s", what)
		}
	}
}

// TestErofs runs an image of many layers of the erofs snapshotter. The layers are disks of the VM, and what was
// written is in a snapshot that is made of the container's.
func TestErofs(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	const layers = 100
	const many, saved = "docker.io/test/many:latest", "docker.io/test/saved:latest"
	var files [][]string
	var names []string
	for i := range layers - 1 {
		name := fmt.Sprintf("f%02d", i)
		if files = append(files, []string{name}); i != 2 {
			names = append(names, name)
		}
	}
	files[5] = append(files[5], ".wh.f02")
	if err := os.WriteFile(d.dir+"/many.tar", imageTar(t, many, files...), 0o600); err != nil {
		t.Fatal(err)
	}
	// With a default_size and an mkfs.erofs that knows no tar, containerd loses a layer now and then while it unpacks.
	d.withoutSize(t, func() { d.must(t, 0, "image", "import", "--local", "--snapshotter", "erofs", d.dir+"/many.tar") })
	d.must(t, 0, run("--detach", "--snapshotter", "erofs", many, "erofs", "sh", "-c",
		"echo f* >/tmp/saw; echo written >/kept; sync; sleep 1000")...)
	d.onHost(t)
	disks, shares, changes := d.attached(t, "erofs")
	if len(disks) != 2 || shares != 0 {
		t.Fatalf("the VM has the disks %+v and %d shares, want a disk of layers and one that is written to", disks, shares)
	}
	of := map[string]bool{}
	for _, e := range append(disks[0].Extents, disks[1].Extents...) {
		if strings.HasSuffix(e.Path, "/layer.erofs") {
			of[e.Path] = true
		}
	}
	if len(of) != layers {
		t.Errorf("the disk is made of %d layers, want %d: %+v", len(of), layers, disks)
	}
	if changes != 5 { // two disks, the file system of each, and what is made of both
		t.Errorf("the root takes %d Changes, want five as for one layer", changes)
	}
	if !slices.ContainsFunc(disks, func(s vmm.SCSIDisk) bool { return strings.HasSuffix(s.Path, "/rwlayer.img") && !s.ReadOnly }) {
		t.Errorf("the VM has the disks %+v, want rwlayer.img", disks)
	}
	until(t, func() error {
		r := d.ctr(nil, "task", "exec", "--exec-id", "look", "erofs", "cat", "/kept", "/tmp/saw")
		want := "written\n" + strings.Join(names, " ") + "\n"
		if r.stdout != want || r.code != 0 {
			return fmt.Errorf("the container has written %q, want %q: %s", r.stdout, want, r.stderr)
		}
		return nil
	})
	d.end(t, "erofs")
	// The snapshot is given the name by which containerd looks for the layers of another image.
	last := []string{"never-unpacked"}
	if err := os.WriteFile(d.dir+"/saved.tar", imageTar(t, saved, append(files, last)...), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, "image", "import", "--local", "--no-unpack", d.dir+"/saved.tar")
	chain := imageChain(t, append(files, last)...)
	d.must(t, 0, "snapshot", "--snapshotter", "erofs", "commit", chain, "erofs")
	r := d.must(t, 0, run("--rm", "--snapshotter", "erofs", saved, "again", "sh", "-c", "cat /kept; echo /f9*")...)
	if r.stdout != "written\n/f90 /f91 /f92 /f93 /f94 /f95 /f96 /f97 /f98\n" {
		t.Errorf("a container of the snapshot reads %q", r.stdout)
	}
	d.must(t, 0, "container", "rm", "erofs")
}

// end kills a container and deletes its task.
func (d *daemon) end(t *testing.T, id string) {
	t.Helper()
	d.must(t, 0, "task", "kill", "--signal", "KILL", id)
	until(t, func() error {
		if r := d.ctr(nil, "task", "rm", id); !strings.Contains(r.stderr, "exit code 137") {
			return fmt.Errorf("task rm: %s", r.stderr)
		}
		return nil
	})
}

// TestBlockfile runs an image of the blockfile snapshotter: its disk is the root.
func TestBlockfile(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	d.twice(t, "blockfile", "/dev/sda / ext4 rw", "/snapshots/")
}

// TestErofsWithoutSize runs an image of the erofs snapshotter where that has no disk to write to.
func TestErofsWithoutSize(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	d.withoutSize(t, func() {
		d.twice(t, "erofs", "overlay / overlay rw", filepath.Join("/", "work", "strata", "sandbox.vhdx"))
	})
}

// withoutSize does something while the erofs snapshotter has no disks to write to.
func (d *daemon) withoutSize(t *testing.T, do func()) {
	t.Helper()
	name := d.dir + "/config.toml"
	config, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	use := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.restart(t)
	}
	use(strings.Replace(string(config), "default_size", "# default_size", 1))
	defer use(string(config))
	do()
}

// twice runs a container and, when it has ended, its task anew. What was written is on a disk that is still there.
func (d *daemon) twice(t *testing.T, snapshotter, root, disk string) {
	t.Helper()
	d.must(t, 0, run("--detach", "--snapshotter", snapshotter, image, "twice", "sh", "-c",
		"echo written >>/kept; sleep 1000")...)
	d.onHost(t)
	disks, shares, _ := d.attached(t, "twice")
	if !slices.ContainsFunc(disks, func(s vmm.SCSIDisk) bool { return strings.Contains(s.Path, disk) && !s.ReadOnly }) ||
		shares != 0 {
		t.Errorf("the VM has the disks %+v and %d shares, want %s", disks, shares, disk)
	}
	kept := func(want string) {
		t.Helper()
		until(t, func() error {
			r := d.ctr(nil, "task", "exec", "--exec-id", "look", "twice", "cat", "/kept", "/proc/mounts")
			if !strings.HasPrefix(r.stdout, want+root) {
				return fmt.Errorf("the container says %q: %s", r.stdout, r.stderr)
			}
			return nil
		})
	}
	kept("written\n")
	d.end(t, "twice")
	d.must(t, 0, "task", "start", "--detach", "twice") // its snapshot is still there
	kept("written\nwritten\n")
	d.end(t, "twice")
	d.must(t, 0, "container", "rm", "twice")
}

// restart kills containerd and starts it anew.
func (d *daemon) restart(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait() // which says that it was killed
	if err := d.launch(); err != nil {
		t.Fatal(err)
	}
}
