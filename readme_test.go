package strata_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// TestReadmeIsAnExample: README's Go code is the body of Example, which is compiled and run.
func TestReadmeIsAnExample(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	tree, err := parser.ParseFile(files, "example_test.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, d := range tree.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "Example" {
			want = string(source[files.Position(f.Body.Lbrace).Offset+1 : files.Position(f.Body.Rbrace).Offset])
		}
	}
	want, _, _ = strings.Cut(want, "\t// Output:")
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begins := strings.Cut(string(readme), "```go\n")
	got, _, ends := strings.Cut(rest, "```\n")
	if !begins || !ends {
		t.Fatal("README has no Go code")
	}
	lines := strings.Split(strings.Trim(want, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "\t")
	}
	if want = strings.Join(lines, "\n") + "\n"; got != want {
		t.Errorf("README says\n%s\nand the example\n%s", got, want)
	}
}

// TestDriversPageIsComplete: docs/drivers.md names each method and trait that a driver has.
func TestDriversPageIsComplete(t *testing.T) {
	page, err := os.ReadFile("docs/drivers.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for m := range reflect.TypeFor[vmm.Driver]().Methods() {
		names = append(names, m.Name)
	}
	for f := range reflect.TypeFor[vmm.Traits]().Fields() {
		names = append(names, f.Name)
	}
	for _, name := range names {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/drivers.md does not say what %s is", name)
		}
	}
}
