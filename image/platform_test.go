package image_test

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
)

// TestParsePlatform: platforms are spelled as containerd lets them be.
func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "amd64": "linux/amd64", "x86_64": "linux/amd64", "linux/x86_64": "linux/amd64",
		"linux/x86-64": "linux/amd64",
		"aarch64":      "linux/arm64", "linux/aarch64": "linux/arm64", "Linux/ARM64": "linux/arm64",
		"linux/arm64/8": "linux/arm64/v8",
		"armhf":         "linux/arm/v7", "linux/armhf": "linux/arm/v7", "armel": "linux/arm/v6",
		"linux/arm/6": "linux/arm/v6", "arm": "linux/arm",
		"i386": "linux/386", "riscv64": "linux/riscv64", "windows": "windows/" + runtime.GOARCH, "linux": "linux/" +
			runtime.GOARCH,
		"macos/arm64": "darwin/arm64", "windows/amd64:10.0.20348": "windows/amd64:10.0.20348", "linux/odd": "linux/odd",
		"": "", "nonsense": "", "/": "", "linux/": "", "/amd64": "", "a/b/c/d": "",
	} {
		p, err := image.ParsePlatform(in)
		if (err != nil) != (want == "") || p.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, p, err, want)
		}
	}
}

// TestPlatformSpellings: images say what they are for in as many ways, and old ones not at all.
func TestPlatformSpellings(t *testing.T) {
	for _, tt := range []struct {
		p    imagetest.Platform
		want string // what is asked for
		runs bool   // on amd64
	}{
		{imagetest.Platform{OS: "linux", Architecture: "x86_64"}, "linux/amd64", true},
		{imagetest.Platform{OS: "Linux", Architecture: "AMD64"}, "linux/amd64", true},
		{imagetest.Platform{OS: "linux", Architecture: "aarch64"}, "linux/arm64", false},
		{imagetest.Platform{OS: "linux", Architecture: "armhf"}, "linux/arm/v7", false},
		{imagetest.Platform{OS: "linux"}, "linux/amd64", true},
		{imagetest.Platform{OS: "linux", Architecture: "386"}, "linux/386", true},
	} {
		b := imagetest.Blobs{}
		d := b.Image(t, &tt.p)
		for _, listed := range []bool{true, false} {
			if d.Platform = nil; listed {
				d.Platform = &tt.p
			}
			want, err := image.ParsePlatform(tt.want)
			if err != nil {
				t.Fatal(err)
			}
			img, err := open(t, b.Layout(t, b.Index(t, d)), image.Options{Platform: want})
			if err != nil {
				t.Errorf("%+v, in the index %v: %v", tt.p, listed, err)
				continue
			}
			if got := img.Platform.RunsOn("amd64"); got != tt.runs {
				t.Errorf("%+v runs on amd64: %v, want %v", tt.p, got, tt.runs)
			}
		}
	}
}

// TestReferences: a registry's image is one image however it is written.
func TestReferences(t *testing.T) {
	for in, want := range map[string]string{
		"debian": "docker.io/library/debian:latest", "docker.io/debian": "docker.io/library/debian:latest",
		"index.docker.io/library/debian:latest": "docker.io/library/debian:latest",
		"library/debian":                        "docker.io/library/debian:latest",
		"docker://docker.io/library/debian:12":  "docker.io/library/debian:12", "localhost/app": "localhost/app:latest",
		"localhost:5000/a/b:V1.2_x-Y": "localhost:5000/a/b:V1.2_x-Y", "[::1]:5000/app": "[::1]:5000/app:latest",
		"ghcr.io/Org/app": "",
	} {
		s, err := image.ParseSource(in)
		if (err != nil) != (want == "") || s.Name != want {
			t.Errorf("%q is %q, %v; want %q", in, s.Name, err, want)
		}
	}
}

// TestConfig: all that the image says of its program is there.
func TestConfig(t *testing.T) {
	c, err := image.ParseConfig(
		[]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"config":{
		"Labels":{"org.opencontainers.image.version":"1"},"StopSignal":"SIGRTMIN+3","Volumes":{"/var/lib/b":{},"/a":{}},
		"ExposedPorts":{"80/tcp":{},"443":{}},"Shell":["/bin/bash","-c"],
		"Healthcheck":{"Test":["CMD","curl"],"Interval":30000000000,"Timeout":1000000000,"StartPeriod":5000000000,"Retries":3}}}`))
	want := image.Config{Labels: map[string]string{"org.opencontainers.image.version": "1"}, StopSignal: "SIGRTMIN+3",
		Volumes: []string{"/a", "/var/lib/b"},
		Ports:   []string{"443", "80/tcp"}, Shell: []string{"/bin/bash", "-c"},
		Healthcheck: &image.Healthcheck{Test: []string{"CMD", "curl"}, Interval: 30 * time.Second, Timeout: time.Second,
			StartPeriod: 5 * time.Second, Retries: 3}}
	if d := cmp.Diff(want, c); d != "" || err != nil {
		t.Error(d, err)
	}
}

// TestProgressIsSparse: the reports of a layer do not come with every piece that is read, and the last is of all of it.
func TestProgressIsSparse(t *testing.T) {
	b := imagetest.Blobs{}
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	img, err := open(t, b.Layout(t, b.Image(t, nil, imagetest.Layer{Tar: content})), image.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	var told []int64
	start := time.Now()
	r, err := img.Layers[0].Open(t.Context(), func(n int64) { told = append(told, n) })
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	most := int(time.Since(start)/(100*time.Millisecond)) + 2
	if len(told) == 0 || len(told) > most || told[len(told)-1] != int64(len(content)) {
		t.Errorf("%d reports, at most %d are due, the last of all bytes", len(told), most)
	}
}
