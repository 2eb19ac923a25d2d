package store_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/store"
	"github.com/stratavm/strata/test/leaktest"
)

// debianRoot names a Debian root tar that is there already, in the environment.
const debianRoot = "STRATA_TEST_DEBIAN"

// debian creates the root of a small real Debian as a tar, once for all tests.
var debian = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "strata-debian-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "debian.tar")
	out, err := exec.Command("mmdebstrap", "--mode=root", "--variant=essential", "bookworm", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := leaktest.Main(m)
	if os.Getenv(childDir) == "" && debianMade {
		if path, err := debian(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

var debianMade bool

func debianTar(t testing.TB) string {
	t.Helper()
	treetest.NeedRoot(t, "to mount and to own files as others")
	if path := os.Getenv(debianRoot); path != "" {
		return path
	}
	_, err := exec.LookPath("mmdebstrap")
	treetest.Need(t, err == nil, "mmdebstrap", "apt-get install mmdebstrap")
	debianMade = true
	path, err := debian()
	treetest.Need(t, err == nil, "a Debian mirror", fmt.Sprint(err))
	return path
}

// change changes a root in all the ways that a layer can say.
func change(t testing.TB, root string) {
	t.Helper()
	at := func(p string) string { return filepath.Join(root, p) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Remove(at("etc/motd.d")))
	must(os.RemoveAll(at("usr/share/doc")))
	must(os.Mkdir(at("usr/share/doc"), 0o750)) // replaced: opaque, or whiteouts of all that was there
	must(os.WriteFile(at("usr/share/doc/new"), []byte("new"), 0o640))
	must(os.RemoveAll(at("usr/share/info")))
	must(os.WriteFile(at("usr/share/info"), []byte("a file where a folder was"), 0o644))
	must(os.Remove(at("etc/issue.net")))
	must(os.Mkdir(at("etc/issue.net"), 0o711)) // a folder where a file was
	must(os.Chown(at("etc/passwd"), 70_000, 80_000))
	must(os.Chmod(at("bin/ls"), 0o4755))
	must(os.Chmod(at(private+"/file"), 0o640))
	must(unix.Mknod(at("dev/made"), unix.S_IFCHR|0o620, int(unix.Mkdev(10, 200))))
	must(unix.Mkfifo(at("var/fifo"), 0o600))
	must(os.WriteFile(at("srv/linked"), []byte("three names"), 0o644))
	must(os.Link(at("srv/linked"), at("var/linked")))
	must(os.Link(at("srv/linked"), at("opt/linked")))
	must(os.Symlink("../srv/linked", at("opt/symlink")))
	must(unix.Lsetxattr(at("srv/linked"), "user.note", []byte("value"), 0))
	must(unix.Lsetxattr(at("bin/cat"), "security.capability",
		[]byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(os.WriteFile(at("srv/"+strings.Repeat("n", 250)), nil, 0o600))
}

// private is a directory of the base, of a mode and owner of its own, in which change changes a file and
// nothing else.
const private = "srv/private"

// thirdParty makes images with umoci, skopeo and buildah, and gives what to import by name, with the OCI
// layout and tag that umoci can unpack for comparison.
func thirdParty(t *testing.T) (layout string, sources map[string]string) {
	t.Helper()
	root := debianTar(t)
	dir, err := os.MkdirTemp("", "strata-umoci-*") // buildah wants paths in lower case
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	layout = filepath.Join(dir, "layout")
	bundle := filepath.Join(dir, "bundle")
	treetest.Run(t, "umoci", "init", "--layout", layout)
	treetest.Run(t, "umoci", "new", "--image", layout+":empty")
	treetest.Run(t, "umoci", "unpack", "--image", layout+":empty", bundle)
	treetest.Untar(t, root, bundle+"/rootfs")
	kept := filepath.Join(bundle, "rootfs", private)
	for _, err := range []error{os.Mkdir(kept, 0), os.Chown(kept, 7, 8), os.Chmod(kept, 0o750|os.ModeSetgid),
		unix.Lsetxattr(kept, "user.kept", []byte("yes"), 0), os.WriteFile(filepath.Join(kept, "file"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	treetest.Run(t, "umoci", "repack", "--refresh-bundle", "--image", layout+":base", bundle)
	_ = os.WriteFile(bundle+"/rootfs/etc/issue.net", []byte("x"), 0o644)
	_ = os.MkdirAll(bundle+"/rootfs/etc/motd.d", 0o755)
	_ = os.MkdirAll(bundle+"/rootfs/usr/share/info/sub", 0o755)
	_ = os.MkdirAll(bundle+"/rootfs/usr/share/doc/some", 0o755)
	treetest.Run(t, "umoci", "repack", "--refresh-bundle", "--image", layout+":middle", bundle)
	change(t, bundle+"/rootfs")
	treetest.Run(t, "umoci", "repack", "--image", layout+":umoci", bundle)
	treetest.Run(t, "umoci", "config", "--image", layout+":umoci", "--config.user", "daemon", "--config.workingdir",
		"/srv", "--config.cmd", "/bin/ls")
	sources = map[string]string{"umoci": "oci:" + layout + ":umoci"}

	archive := filepath.Join(dir, "docker.tar")
	treetest.Run(t, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":umoci", "docker-archive:"+archive+
		":app:v1")
	sources["skopeo docker-archive"] = archive
	zstd := filepath.Join(dir, "zstd.oci")
	treetest.Run(t, "skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", "zstd", "oci:"+layout+":umoci",
		"oci:"+zstd+":v1")
	sources["skopeo zstd"] = zstd
	ociArchive := filepath.Join(dir, "oci.tar")
	treetest.Run(t, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+layout+":umoci", "oci-archive:"+ociArchive+":v1")
	sources["skopeo oci-archive"] = ociArchive
	return layout, sources
}

// buildahImage builds on the image in the layout with buildah and adds the result to it.
func buildahImage(t *testing.T, layout string) {
	t.Helper()
	storage := t.TempDir()
	b := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(treetest.Run(t, "buildah",
			append([]string{"--root", storage + "/root", "--runroot", storage + "/run", "--storage-driver", "vfs"}, args...)...))
	}
	from := b("from", "--quiet", "--isolation", "chroot", "oci:"+layout+":middle")
	mnt := b("mount", from)
	change(t, mnt)
	b("unmount", from)
	b("config", "--user", "www-data:staff", "--entrypoint", `["/bin/sh","-c"]`, "--cmd", "id", "--env", "A=b c", from)
	b("commit", "--quiet", "--format", "oci", "--disable-compression=false", from, "oci:"+layout+":buildah")
	b("rm", from)
}

// TestSameAsUmoci: real images, made by other programs, are what umoci unpacks of them: names, types,
// modes, owners, times, attributes, link counts, devices and contents. So the host's kernel shows them
// through overlays and through an index, and the kernel of a VM through the index that is mounted there.
func TestSameAsUmoci(t *testing.T) {
	layout, sources := thirdParty(t)
	buildahImage(t, layout)
	sources["buildah"] = "oci:" + layout + ":buildah"
	want := map[string]map[string]string{}
	for _, tag := range []string{"umoci", "buildah"} {
		bundle := filepath.Join(t.TempDir(), "bundle")
		treetest.Run(t, "umoci", "unpack", "--image", layout+":"+tag, bundle)
		want[tag] = tidy(treetest.Describe(t, bundle+"/rootfs"))
	}
	views := append(slices.Clone(hostViews), guestView(t))
	s := open(t, t.TempDir(), store.Options{})
	for name, text := range sources {
		t.Run(name, func(t *testing.T) {
			img := openImage(t, text)
			rec, err := img.Import(t.Context(), s, image.ImportOptions{Formats: []store.Format{erofs, vhd}})
			if err != nil {
				t.Fatal(err)
			}
			tag := "umoci"
			user := "daemon"
			if name == "buildah" {
				tag, user = name, "www-data:staff"
			}
			if img.Config.User != user {
				t.Errorf("user %q, want %q", img.Config.User, user)
			}
			noEntry := map[string]bool{}
			for _, l := range img.Layers {
				in, err := l.Open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				maps.Copy(noEntry, treetest.Implied(t, in))
				if err := in.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if name == "umoci" && !noEntry[private] {
				t.Errorf("%s has an entry in all layers, and so tries nothing", private)
			}
			for _, v := range views {
				if v.slow && name != tag { // its layers are those of the image it was copied from
					continue
				}
				folders, err := s.Folders(rec, v.format)
				if err != nil {
					t.Fatal(err)
				}
				got := tidy(v.list(t, folders))
				if d := treetest.Diff(v.only(want[tag], got, noEntry)); d != "" {
					t.Errorf("%s: %s", v.name, d)
				}
				if len(got) < 1000 {
					t.Errorf("%s: only %d files", v.name, len(got))
				}
			}
		})
	}
	if r := whole(t, s); !slices.ContainsFunc(mustImages(t, s), func(i store.Image) bool { return len(i.Layers) >= 3 }) {
		t.Errorf("no image has three layers: %+v", r)
	}
}

func mustImages(t *testing.T, s *store.Store) []store.Image {
	t.Helper()
	list, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// tidy takes out what no layer says: the folder that e2fsck wants.
func tidy(d map[string]string) map[string]string {
	delete(d, "lost+found")
	return d
}

// openImage opens an image until the test ends.
func openImage(t testing.TB, text string) *image.Image {
	t.Helper()
	src, err := image.ParseSource(text)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(t.Context(), src, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}
