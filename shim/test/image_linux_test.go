package test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/stratavm/strata/test/imagetest"
)

// image is the name of the image that tests run.
const image = "docker.io/test/box:latest"

// pauseImage is the name of the image that pods begin with.
const pauseImage = "docker.io/test/pause:latest"

// pauseTar is an image that does nothing, as ctr imports it, under a name that no test looks for.
func pauseTar(t *testing.T) []byte {
	t.Helper()
	blobs := imagetest.Blobs{}
	m := blobs.ImageWith(t, nil, func(config map[string]any) {
		config["config"] = map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"tail", "-f", "-s", "1000000", "/dev/null"}}
	}, imageLayers(t)...)
	m.Annotations = map[string]string{"io.containerd.image.name": pauseImage}
	return blobs.LayoutTar(t, m)
}

// imageLayers are those of an image of busybox, with more layers on top of it: each is of empty files.
func imageLayers(t *testing.T, more ...[]string) []imagetest.Layer {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	box, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	add := func(w *tar.Writer, h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	var base bytes.Buffer
	w := tar.NewWriter(&base)
	for _, name := range []string{"bin", "etc", "tmp"} {
		add(w, tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(w, tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, box)
	for _, name := range []string{"sh", "brctl", "echo", "cat", "dd", "grep", "httpd", "id", "ip", "ls", "ps", "sleep",
		"stty", "sync", "tail", "tr", "wget"} {
		add(w, tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layers := []imagetest.Layer{{Tar: base.Bytes(), Compression: "gzip"}}
	for _, files := range more {
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		for _, file := range files {
			add(w, tar.Header{Name: file, Typeflag: tar.TypeReg, Mode: 0o644}, nil)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, imagetest.Layer{Tar: layer.Bytes()})
	}
	return layers
}

// imageTar is an image of imageLayers, as ctr imports it.
func imageTar(t *testing.T, name string, more ...[]string) []byte {
	t.Helper()
	imagetest.Config = map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sh"}}
	blobs := imagetest.Blobs{}
	m := blobs.Image(t, nil, imageLayers(t, more...)...)
	m.Annotations = map[string]string{"io.containerd.image.name": name}
	return blobs.LayoutTar(t, m)
}

// imageChain is what containerd calls the snapshot of all layers.
func imageChain(t *testing.T, more ...[]string) (chain string) {
	t.Helper()
	for _, l := range imageLayers(t, more...) {
		id := imagetest.Digest(l.Tar)
		if chain != "" {
			id = imagetest.Digest([]byte(chain + " " + id))
		}
		chain = id
	}
	return chain
}
