package arch

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/api.txt anew")

// root is the folder of the module, seen from that of this test.
const root = "../.."

// public are the packages that programs import. What their exported names are is a promise: see
// "Stability" in the README.
var public = []string{".", "hcsschema", "image", "layerdir", "layers", "store", "uvm", "vmm"}

// TestAPI compares the exported declarations of the public packages with testdata/api.txt, so that a
// review shows each change of them. "go test ./test/arch -update" writes the file anew.
func TestAPI(t *testing.T) {
	var b strings.Builder
	for _, pkg := range public {
		lines := map[string][]string{}
		for _, goos := range []string{"linux", "windows"} {
			for _, line := range exported(t, pkg, goos) {
				lines[line] = append(lines[line], goos)
			}
		}
		fmt.Fprintf(&b, "# %s\n", strings.TrimSuffix("github.com/stratavm/strata/"+pkg, "/."))
		for _, line := range slices.Sorted(mapKeys(lines)) {
			if on := lines[line]; len(on) == 1 {
				line += " // " + on[0] + " only"
			}
			fmt.Fprintln(&b, line)
		}
		fmt.Fprintln(&b)
	}
	golden := filepath.Join("testdata", "api.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("the public API differs from %s (if that is meant: go test ./test/arch -update):\n%s", golden, diff)
	}
}

func mapKeys(m map[string][]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// exported lists the exported declarations of a package on one system, each on a line.
func exported(t *testing.T, pkg, goos string) (lines []string) {
	t.Helper()
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = goos, "amd64", false
	dir := filepath.Join(root, pkg)
	p, err := ctx.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.FileExports(f) {
			continue
		}
		for _, d := range f.Decls {
			lines = append(lines, declarations(t, fset, d)...)
		}
	}
	return lines
}

func declarations(t *testing.T, fset *token.FileSet, d ast.Decl) (lines []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		d.Body, d.Doc = nil, nil
		lines = append(lines, oneLine(t, fset, d))
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				lines = append(lines, types(t, fset, s)...)
			case *ast.ValueSpec:
				for _, name := range s.Names {
					line := d.Tok.String() + " " + name.Name
					if s.Type != nil {
						line += " " + oneLine(t, fset, s.Type)
					}
					lines = append(lines, line)
				}
			}
		}
	}
	return lines
}

// types lists a type, and each exported field and method of a struct and an interface, as
// ast.FileExports has left them.
func types(t *testing.T, fset *token.FileSet, s *ast.TypeSpec) (lines []string) {
	var fields *ast.FieldList
	kind := ""
	switch typ := s.Type.(type) {
	case *ast.StructType:
		fields, kind = typ.Fields, "struct"
	case *ast.InterfaceType:
		fields, kind = typ.Methods, "interface"
	default:
		s.Doc, s.Comment = nil, nil
		return []string{"type " + oneLine(t, fset, s)}
	}
	lines = []string{"type " + s.Name.Name + " " + kind}
	for _, f := range fields.List {
		typ := oneLine(t, fset, f.Type)
		if len(f.Names) == 0 {
			lines = append(lines, fmt.Sprintf("type %s %s, embeds %s", s.Name.Name, kind, typ))
		}
		for _, name := range f.Names {
			lines = append(lines, fmt.Sprintf("type %s %s, %s %s", s.Name.Name, kind, name.Name, typ))
		}
	}
	return lines
}

func oneLine(t *testing.T, fset *token.FileSet, node any) string {
	t.Helper()
	var b bytes.Buffer
	if err := printer.Fprint(&b, fset, node); err != nil {
		t.Fatal(err)
	}
	// Where a signature is broken into lines is no difference.
	return strings.NewReplacer("( ", "(", ", )", ")").Replace(strings.Join(strings.Fields(b.String()), " "))
}
