package layerdir_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/layerdir"
)

func TestChain(t *testing.T) {
	base := t.TempDir()
	dirs := make([]string, 3) // base first
	for i := range dirs {
		dirs[i] = filepath.Join(base, string(rune('a'+i)))
		var parents []string
		for j := i - 1; j >= 0; j-- {
			parents = append(parents, dirs[j])
		}
		if err := layerdir.WriteChain(dirs[i], parents); err != nil {
			t.Fatal(err)
		}
		if got, err := layerdir.ReadChain(dirs[i]); err != nil || !slices.Equal(got, parents) {
			t.Errorf("%s: got %q, %v; want %q", dirs[i], got, err, parents)
		}
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(dirs[1], link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); err != nil && runtime.GOOS == "windows" {
		t.Log("without a link: Wine says that it has made one, and has not")
		link = dirs[1]
	}
	plain := filepath.Join(base, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		order []string
		ok    bool
	}{
		{"right", []string{dirs[2], dirs[1], dirs[0]}, true},
		{"right, by a link and a longer path", []string{dirs[2], link, dirs[0] + "/../a/"}, true},
		{"right, part", []string{dirs[1], dirs[0]}, true},
		{"on top of a layer without a chain", []string{plain, dirs[0]}, true},
		{"reversed", []string{dirs[0], dirs[1], dirs[2]}, false},
		{"swapped", []string{dirs[2], dirs[0], dirs[1]}, false},
		{"base is missing", []string{dirs[2], dirs[1]}, false},
		{"foreign base", []string{dirs[2], dirs[1], plain}, false},
	} {
		err := layerdir.CheckChain(c.order)
		if c.ok != (err == nil) || (!c.ok && !errors.Is(err, layerdir.ErrChainOrder)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if !c.ok && (!strings.Contains(err.Error(), strings.Join(c.order[1:], ", ")) ||
			!strings.Contains(err.Error(), "says [")) {
			t.Errorf("%s: the error does not show both orders: %v", c.name, err)
		}
	}
}

// BenchmarkCheckChain: what each mount of a chain costs before anything is touched.
func BenchmarkCheckChain(b *testing.B) {
	for _, n := range []int{10, 100, 300} {
		b.Run(fmt.Sprintf("layers=%d", n), func(b *testing.B) {
			base := b.TempDir()
			dirs := make([]string, n) // topmost first
			for i := range dirs {
				dirs[i] = filepath.Join(base, fmt.Sprint(i))
			}
			for i, dir := range dirs {
				if err := layerdir.WriteChain(dir, dirs[i+1:]); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if err := layerdir.CheckChain(dirs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestBadChains(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "x", "object": `{"a":1}`, "numbers": "[1]", "empty path": `[""]`, "NUL": `["a\u0000b"]`,
		"twice": `["/a","/b","/a/."]`, "cut": `["/a"`,
	} {
		if got, err := layerdir.ParseChain([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %q", name, got)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, layerdir.ChainName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := layerdir.CheckChain([]string{dir}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: the error does not name the file: %v", name, err)
		}
	}
	if _, err := layerdir.ReadChain(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
