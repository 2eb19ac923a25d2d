package images

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folders is how many folders of a hundred files a build makes: fewer in a VM, which under software emulation takes a
// hundred times as long for each.
var folders = map[bool]int{true: 30, false: 100}

// builder makes files as a build does: many, small, in many folders, from a tar, and renames folders into place.
const builder = `
set -e
mkdir /tmp/src
cd /tmp/src
for d in $(seq $FOLDERS); do
	mkdir $d
	for f in $(seq 0 99); do echo "int f${d}_$f;" >$d/$f.c; done
done
mkdir /out/new
tar -c . | tar -x -m --no-same-owner --no-same-permissions -C /out/new
mv /out/new /out/src
find . -type f | xargs sha256sum >/out/sums
`

// TestBuild: the thousands of files that a container writes into a folder of the host are there, each as it was
// written.
func TestBuild(t *testing.T) {
	both(t, func(t *testing.T, b box, flags []string) {
		out := filepath.Join(t.TempDir(), "out")
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		files := 100 * folders[flags == nil]
		b.run(append(append([]string{"run"}, flags...), "-e", fmt.Sprintf("FOLDERS=%d", files/100), "-v", out+":/out",
			debian, "sh", "-c", builder)...)
		sums, err := os.ReadFile(filepath.Join(out, "sums"))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for line := range strings.Lines(string(sums)) {
			sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
			want[filepath.Clean(name)] = sum
		}
		if len(want) != files {
			t.Errorf("the container counts %d files, want %d", len(want), files)
		}
		n, src := 0, filepath.Join(out, "src")
		err = filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			content, err := os.ReadFile(path)
			name, rerr := filepath.Rel(src, path)
			if err != nil || rerr != nil {
				return err
			}
			if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != want[name] {
				t.Errorf("%s: %q, %s where the container has written %q", name, content, got, want[name])
			}
			return nil
		})
		if err != nil || n != files {
			t.Errorf("the host counts %d files, want %d: %v", n, files, err)
		}
	})
}
