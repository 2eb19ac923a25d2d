package arch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/stratavm/strata"

// levels are the packages from the bottom up. A package imports packages of lower levels only, or those
// of its own level that stand before it in the list. Folders whose name ends in "test", what is in them, and
// what is below test/ are test helpers: imported by tests only. ARCHITECTURE.md shows this table.
var levels = []struct {
	name     string
	packages []string
}{
	{"plain formats, documents and helpers", []string{
		"internal/hostpath", "internal/regfile", "internal/lockfile", "internal/atomicfile", "internal/plaintext",
		"internal/userns", "internal/bootid", "internal/treecopy", "internal/volume", "internal/ocispec", "hcsschema",
		"internal/format/cpio", "internal/format/gpt", "internal/format/vhd", "internal/format/verity",
		"internal/format/layertree", "internal/format/ext4", "internal/format/erofs", "layerdir", "internal/nsthread",
		"internal/span", "internal/tracefile",
	}},
	{"the driver interface", []string{"vmm"}},
	{"what drivers share", []string{"internal/hcsapi", "internal/gcs", "internal/applyengine", "internal/slirp",
		"internal/tapnet"}},
	{"what a guest boots, and its agent", []string{
		"internal/bootimage", "internal/hostmount", "internal/guest/gcsserver", "internal/guest/mounts",
		"internal/guest/network",
		"internal/crun", "internal/guest/procs", "internal/guest", "internal/guest/guestmain", "cmd/strata-init",
	}},
	{"layers of a Windows host", []string{"internal/wclayer"}},
	{"drivers", []string{"vmm/qemu", "vmm/hcs", "vmm/local", "vmm/argon"}},
	{"the ledger of a VM, the store of layers", []string{"uvm", "store"}},
	{"mount layers, read images", []string{"layers", "image"}},
	{"what stands behind a container that runs", []string{"internal/supervise"}},
	{"start and open VMs, run containers", []string{""}},
	{"the command line", []string{"cmd/strata"}},
}

// forbidden says what must not be reached from where, by whatever way, and why.
var forbidden = []struct {
	from, to []string // import path prefixes; those of from relative to the module
	why      string
}{
	{[]string{""}, []string{"github.com/containerd/containerd", "github.com/docker/docker", "k8s.io"},
		"strata is a library below container engines; one of them would drag in the others' releases"},
	{[]string{""}, []string{"github.com/sirupsen/logrus", "github.com/docker/cli",
		"github.com/docker/docker-credential-helpers"},
		"a program that mounts layers brings its own logging, and image reads the files of docker login itself"},
	{[]string{"vmm", "uvm", "layers", "hcsschema", "layerdir", "image", "store", "internal"},
		[]string{"github.com/urfave/cli", "github.com/spf13", "golang.org/x/term"},
		"whoever uses the library brings a command line of their own"},
	{[]string{"uvm", "layerdir", "store", "internal/bootimage", "internal/format", "hcsschema", "vmm/qemu", "vmm/vmmtest"},
		[]string{module + "/vmm/hcs", module + "/internal/wclayer", "github.com/Microsoft/go-winio"},
		"the core is the same code on every host; Windows is behind vmm.Machine and layers.Host"},
	{[]string{"uvm", "layers", "image", "store"}, []string{module + "/vmm/qemu", module + "/vmm/hcs"},
		"drivers are wired by the root package; everything above vmm.Machine works with any of them"},
	{[]string{"vmm", "uvm", "layers", "layerdir", "internal"},
		[]string{module + "/image", module + "/store", "github.com/google/go-containerregistry", "net/http"},
		"images and registries are above layers, not below them"},
	{[]string{"hcsschema", "internal/format"}, []string{"os/exec", "net/http"},
		"formats read and write streams; they start no programs and talk to nobody"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// list asks the go command for the packages of the module, for one system.
func list(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// place is the order of a package in the table: lower may not import higher.
func place(rel string) (n int, helper, known bool) {
	for _, f := range levels {
		for _, p := range f.packages {
			n++
			if rel == p {
				return n, false, true
			}
		}
	}
	helper = strings.HasPrefix(rel, "test/") || slices.ContainsFunc(strings.Split(rel, "/"),
		func(part string) bool { return strings.HasSuffix(part, "test") })
	return 0, helper, helper
}

func relative(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func TestArrowsPointDown(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		for _, msg := range upward(list(t, goos)) {
			t.Errorf("%s: %s", goos, msg)
		}
	}
}

func upward(pkgs []pkg) (wrong []string) {
	for _, p := range pkgs {
		rel, _ := relative(p.ImportPath)
		at, helper, known := place(rel)
		if !known {
			wrong = append(wrong, fmt.Sprintf("%s has no level in the table here", rel))
			continue
		}
		for _, imp := range p.Imports {
			to, ours := relative(imp)
			if !ours {
				continue
			}
			toAt, toHelper, _ := place(to)
			switch {
			case helper:
			case toHelper:
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which is for tests", rel, to))
			case toAt >= at:
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which stands above it", rel, to))
			}
		}
	}
	return wrong
}

func TestForbiddenDependencies(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		for _, msg := range trespass(list(t, goos)) {
			t.Errorf("%s: %s", goos, msg)
		}
	}
}

func trespass(pkgs []pkg) (wrong []string) {
	below := func(path string, prefixes []string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool {
			return p == "" || path == p || strings.HasPrefix(path, p+"/")
		})
	}
	for _, p := range pkgs {
		rel, _ := relative(p.ImportPath)
		if _, helper, _ := place(rel); helper {
			continue
		}
		for _, rule := range forbidden {
			// A driver stands in a folder of the core without being of it.
			if !below(rel, rule.from) || strings.HasPrefix(rel, "vmm/hcs") && slices.Contains(rule.from, "vmm") {
				continue
			}
			for _, dep := range p.Deps {
				if below(dep, rule.to) {
					wrong = append(wrong, fmt.Sprintf("%s depends on %s: %s", rel, dep, rule.why))
				}
			}
		}
	}
	return wrong
}

// TestDependencyRulesBite tries the rules on imports that break them.
func TestDependencyRulesBite(t *testing.T) {
	mk := func(from string, to ...string) []pkg {
		return []pkg{{ImportPath: module + "/" + from, Imports: to, Deps: to}}
	}
	for _, tt := range []struct {
		pkgs []pkg
		want string
	}{
		{mk("vmm", module+"/uvm"), "stands above"},
		{mk("internal/format/cpio", module), "stands above"},
		{mk("utils"), "no level"},
		{mk("uvm", module+"/vmm/vmmtest"), "for tests"},
		{mk("layers", "github.com/urfave/cli/v3"), "command line"},
		{mk("image", "github.com/containerd/containerd/v2/core/mount"), "container engines"},
		{mk("layers", "github.com/sirupsen/logrus"), "its own logging"},
		{mk("uvm", "github.com/Microsoft/go-winio/vhd"), "every host"},
		{mk("uvm", module+"/vmm/qemu"), "root package"},
	} {
		got := append(upward(tt.pkgs), trespass(tt.pkgs)...)
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, tt.want) }) {
			t.Errorf("%s importing %v: got %q, want %q", tt.pkgs[0].ImportPath, tt.pkgs[0].Imports, got, tt.want)
		}
	}
}

// TestArchitecturePicture compares the table of levels in ARCHITECTURE.md with the one here.
// "go test ./test/arch -update" writes it anew.
func TestArchitecturePicture(t *testing.T) {
	const begin = "<!-- levels: written by go test ./test/arch -update -->\n"
	const end = "<!-- end of levels -->\n"
	path := filepath.Join(root, "ARCHITECTURE.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(b), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := levelsTable()
	if *update {
		if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("%s shows\n%s\nwant\n%s\n(go test ./test/arch -update)", path, got, want)
	}
}

func levelsTable() string {
	var b strings.Builder
	b.WriteString("| level, from the top | packages |\n|---|---|\n")
	for _, l := range slices.Backward(levels) {
		names := make([]string, len(l.packages))
		for i, p := range l.packages {
			if p == "" {
				p = "strata"
			}
			names[i] = "`" + p + "`"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", l.name, strings.Join(names, " "))
	}
	return b.String()
}

// TestFewPublicPackages: what a program can import is the list in this package and the drivers, and the
// top of the tree stays small enough to be taken in at a glance.
func TestFewPublicPackages(t *testing.T) {
	var got []string
	for _, p := range list(t, "linux") {
		rel, _ := relative(p.ImportPath)
		top, _, _ := strings.Cut(rel, "/")
		if !slices.Contains([]string{"internal", "cmd", "test"}, top) && !strings.HasPrefix(rel, "vmm/") {
			got = append(got, cmp.Or(rel, "."))
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(public)); !slices.Equal(got, want) || len(got) > 8 {
		t.Errorf("public packages: %q, want %q, and no more than 8", got, want)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var rooms []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" {
			rooms = append(rooms, e.Name())
		}
	}
	if len(rooms) > 14 {
		t.Errorf("%d folders at the top: %q, want 14 at most", len(rooms), rooms)
	}
}
