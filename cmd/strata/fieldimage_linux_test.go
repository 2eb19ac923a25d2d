package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
)

// imageFile writes an image of busybox and other entries, whose configuration says how its program is run.
func (c cliBox) imageFile(config map[string]any, entries ...treetest.Entry) string {
	c.t.Helper()
	return c.imageOf(config, busyboxLayer(c.t, entries...))
}

// imageOf writes an image of layers, the lowest first.
func (c cliBox) imageOf(config map[string]any, layers ...[]byte) string {
	c.t.Helper()
	var list []imagetest.Layer
	for _, l := range layers {
		list = append(list, imagetest.Layer{Tar: l, Compression: "gzip"})
	}
	blobs := imagetest.Blobs{}
	d := blobs.ImageWith(c.t, &imagetest.Platform{OS: "linux", Architecture: runtime.GOARCH},
		func(document map[string]any) { document["config"] = config }, list...)
	return imagetest.Write(c.t, "image.tar", blobs.LayoutTar(c.t, imagetest.Tagged(d, "v1")))
}

func busyboxLayer(t *testing.T, entries ...treetest.Entry) []byte {
	t.Helper()
	return treetest.Tar(t, append([]treetest.Entry{
		{Name: "bin/busybox", Mode: 0o755, Body: string(busyboxOf(t))}}, entries...)...)
}

func busyboxOf(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func shell(script string) []string { return []string{"/bin/busybox", "sh", "-c", script} }

// TestVolumeOfImage: a volume that the image has and nobody gave a name is there and written, and goes with the run.
func TestVolumeOfImage(t *testing.T) {
	c, _ := processBox(t)
	image := c.imageFile(map[string]any{"Volumes": map[string]any{"/var/lib/data": struct{}{}},
		"Cmd": shell("cd /var/lib/data && echo kept >x && /bin/busybox cat x && /bin/busybox grep -c ' /var/lib/data ' " +
			"/proc/self/mountinfo")})
	if got := c.out(nil, "run", "--isolation=process", image); got != "kept\n1\n" {
		t.Errorf("it prints %q, want what was written to the volume, and one mount", got)
	}
	if got := c.out(nil, "volume", "ls", "-q"); got != "" {
		t.Errorf("volumes with names are there: %q", got)
	}
	if err := filepath.WalkDir(c.state, func(path string, d os.DirEntry, err error) error {
		if err == nil && (d.Name() == "volumes" || d.Name() == "x") {
			t.Errorf("left after the run: %s", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestDetachedStopSignalOfImage: strata stop sends the image's signal, also once the container was started again.
func TestDetachedStopSignalOfImage(t *testing.T) {
	c, _ := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	image := c.imageFile(map[string]any{"StopSignal": "SIGINT", "Cmd": shell(heard)})
	c.run("run", "-d", "--isolation=process", "--name", "web", image)
	for n := 1; n <= 2; n++ {
		eventually(t, "the program is up", func() bool { return strings.Count(c.run("logs", "web"), "up\n") == n })
		c.run("stop", "web")
		code, logs := c.out(nil, "wait", "web"), c.run("logs", "web")
		if code != "2\n" || strings.Count(logs, "INT\n") != n {
			t.Errorf("stop %d: exit code %q, %q; want 2, of the trap for INT", n, code, logs)
		}
		if n == 1 {
			c.run("start", "web")
		}
	}
	c.run("rm", "web")
}

// rightsImage is an image whose program shows what capabilities of files, in both forms, and the set-user-ID bit do,
// and what it says.
func (c cliBox) rightsImage() (image, says string) {
	c.t.Helper()
	busybox := string(busyboxOf(c.t))
	const netRaw, effective = 13, 1
	caps := func(version uint32, more ...uint32) map[string]string {
		words := append([]uint32{version<<24 | effective, 1 << netRaw, 0, 0, 0}, more...)
		b, err := binary.Append(nil, binary.LittleEndian, words)
		if err != nil {
			c.t.Fatal(err)
		}
		return map[string]string{"SCHILY.xattr.security.capability": string(b)}
	}
	show := "/grep CapEff /proc/self/status; "
	image = c.imageFile(map[string]any{"User": "1000:1000",
		"Cmd": shell("/v2" + show + "/v3" + show + "/plain" + show + "/bin/busybox id -u; " +
			"/setuid/su -c '/bin/busybox id -u'; /plain/su -c '/bin/busybox id -u' 2>/dev/null || echo refused")},
		// With an empty password su asks for none: that it becomes root takes the rights of its file.
		treetest.Entry{Name: "etc/passwd", Body: "root::0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"},
		treetest.Entry{Name: "bin/sh", Type: '2', Link: "busybox"},
		treetest.Entry{Name: "v2/grep", Mode: 0o755, Body: busybox, PAX: caps(2)},
		treetest.Entry{Name: "v3/grep", Mode: 0o755, Body: busybox, PAX: caps(3, 0)},
		treetest.Entry{Name: "plain/grep", Type: '1', Link: "bin/busybox"},
		treetest.Entry{Name: "plain/su", Type: '1', Link: "bin/busybox"},
		treetest.Entry{Name: "setuid/su", Mode: 0o4755, Body: busybox})
	return image, "CapEff:\t0000000000002000\nCapEff:\t0000000000002000\nCapEff:\t0000000000000000\n1000\n0\nrefused\n"
}

// TestRightsOfFiles: capabilities of files and the set-user-ID bit come out of an image and act.
func TestRightsOfFiles(t *testing.T) {
	c, _ := processBox(t)
	image, want := c.rightsImage()
	for _, format := range []string{"erofs", "vhd"} {
		if got := c.out(nil, "run", "--isolation=process", "--format", format, image); got != want {
			t.Errorf("%s: it prints %q, want %q", format, got, want)
		}
	}
}
