package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/test/imagetest"
)

// webServer is what critest knows as nginx: it looks for the process, the file with its number, and a page.
const webServer = `#!/bin/sh
trap 'exit 0' TERM
echo $$ >/var/run/nginx.pid
httpd -f -p ${PORT:-80} -h /www &
wait
`

// critestImages are the images of critest by their names, with what differs in their configuration. All have the same
// layer.
func critestImages() map[string]object {
	const (
		k8s   = "registry.k8s.io/"
		e2e   = k8s + "e2e-test-images/"
		tools = "gcr.io/k8s-staging-cri-tools/"
	)
	web := object{"Cmd": []string{"/sbin/nginx", "master process"}}
	pause := object{"Cmd": []string{"sleep", "1000000"}}
	images := map[string]object{
		e2e + "busybox:1.29-2":                          {"Cmd": []string{"sh"}},
		e2e + "nginx:1.14-2":                            web,
		e2e + "nonewprivs:1.3":                          {"Cmd": []string{"/bin/euid"}},
		e2e + "httpd:2.4.39-4":                          {"Cmd": []string{"sh", "-c", "echo httpd; exec httpd -f -p 80 -h /www"}},
		k8s + "pause:3.9":                               pause,
		"k8s.gcr.io/pause:3.9":                          pause,
		tools + "hostnet-nginx-amd64:latest":            {"Cmd": web["Cmd"], "Env": []string{"PATH=/bin:/sbin", "PORT=12003"}},
		tools + "test-image-user-uid:latest":            {"User": "1002"},
		tools + "test-image-user-username:latest":       {"User": "www-data"},
		tools + "test-image-user-uid-group:latest":      {"User": "1003:www-data"},
		tools + "test-image-user-username-group:latest": {"User": "www-data:www-data"},
		tools + "test-image-predefined-group:latest":    {"User": "1000"},
	}
	for _, name := range []string{"latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"} {
		images[tools+"test-image-"+name] = object{"Labels": map[string]string{"name": name}}
	}
	for i := range 3 {
		images[fmt.Sprintf("%stest-image-tags:%d", tools, i+1)] = object{"Labels": map[string]string{"name": "tags"}}
	}
	return images
}

// critestLayer is the layer of all of them: all that busybox can do, stand-ins for what it cannot, users.
func critestLayer(t *testing.T, euid string) []byte {
	t.Helper()
	box, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string][]byte{}
	for name, path := range map[string]string{"busybox": box, "euid": euid} {
		if programs[name], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	applets, err := exec.Command(box, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin", "etc", "root", "usr", "var", "var/run", "www"} {
		add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/www:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n" +
			"nobody:x:65534:65534::/:/bin/sh\n",
		"etc/group": "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n" +
			"nobody:x:65534:\n",
		"www/index.html": "a page\n",
	} {
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, text)
	}
	scripts := map[string]string{"bin/pgrep": "#!/bin/sh\nexec pidof \"$@\"\n", "bin/ipcs": "#!/bin/sh\ncat /proc/sysvipc/shm\n",
		"sbin/nginx": webServer, "bin/busybox": string(programs["busybox"])}
	for name, text := range scripts {
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, text)
	}
	add(tar.Header{Name: "bin/euid", Typeflag: tar.TypeReg, Mode: 0o4755}, string(programs["euid"]))
	for name := range strings.FieldsSeq(string(applets)) { // hard links, of which one can be masked
		if scripts["bin/"+name] == "" {
			add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755}, "")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// serveCritest serves the images by a registry, which containerd asks for those of any other.
func (k kube) serveCritest(t *testing.T) {
	t.Helper()
	if err := build(k.bin, ".", "./euid"); err != nil {
		t.Fatal(err)
	}
	blobs := imagetest.Blobs{}
	tags := map[string]string{} // digests of manifests, by repository and tag
	layer := imagetest.Layer{Tar: critestLayer(t, k.bin+"/euid"), Compression: "gzip"}
	for name, more := range critestImages() {
		m := blobs.ImageWith(t, nil, func(document map[string]any) {
			config := object{"Env": []string{"PATH=/bin:/sbin"}, "Cmd": []string{"sh"}}
			for key, v := range more {
				config[key] = v
			}
			document["config"] = config
		}, layer)
		_, repository, _ := strings.Cut(name, "/")
		tags[repository] = m.Digest
	}
	registry := imagetest.NewRegistry(t, blobs)
	registry.Before = func(_ http.ResponseWriter, r *http.Request) bool {
		repository, tag, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		if digest := tags[repository+":"+tag]; ok && digest != "" {
			r.URL.Path = "/v2/" + repository + "/manifests/" + digest
		}
		return false
	}
	file := filepath.Join(k.daemon.dir, "certs.d", "_default", "hosts.toml")
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, fmt.Appendf(nil, "[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
			registry.Host()), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
