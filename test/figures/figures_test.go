package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const printed = `goos: linux
pkg: github.com/stratavm/strata/store
BenchmarkImportImage/zstd/strata-2         	       3	         0.9 s	         1.000 ×time
BenchmarkImportImage/zstd/strata-2         	       3	         0.7 s	         1.000 ×time
BenchmarkImportImage/zstd/strata-2         	       3	         0.8 s	         1.000 ×time
BenchmarkImportImage/zstd/sha256sum<&>-2   	       3	         1.6 s	         2.000 ×time
pkg: github.com/stratavm/strata/test/e2e
BenchmarkOneDisk/index/layers=1-2          	       1	         0 ns/op	       150 ms/mount	  1.0 ×mount
BenchmarkOneDisk/index/layers=100-2        	       1	         0 ns/op	       190 ms/mount	  1.27 ×mount
BenchmarkOneDisk/separate/layers=100-2     	       1	         0 ns/op	     12100 ms/mount	  35 ×mount
BenchmarkBootSteps/kernel-2                	       5	         0 ns/op	       100 ms-from	  900 ms-to
pkg: github.com/stratavm/strata
BenchmarkOneDisk/index/layers=1-2          	       1	         3 ns/op
--- BENCH: something else
PASS
`

func TestFigures(t *testing.T) {
	dir := t.TempDir()
	doc := filepath.Join(dir, "page.md")
	if err := os.WriteFile(doc, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for range 2 { // the second time in the place of the first
		out.Reset()
		if err := run(strings.NewReader(printed), &out, doc, filepath.Join(dir, "plots"), "Two processors."); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + beginMark, endMark + "\nafter\n", "Two processors.",
		"| store | ImportImage/zstd/strata | 9 | 0.8 (0.7 – 0.9) s, 1 (1 – 1) ×time |",
		"|  | OneDisk/index/layers=1 | 1 | 3 ns/op |", "| test/e2e | OneDisk/index/layers=1 | 1 | 150 ms/mount",
		"| test/e2e | OneDisk/index/layers=100 | 1 | 190 ms/mount, 1.27 ×mount |", "(plots/layers.svg)"} {
		if strings.Count(string(page), want) != 1 {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(string(page), want), page)
		}
	}
	if strings.Contains(string(page), "old") {
		t.Error("what was between the marks is still there")
	}
	if got := out.String(); !strings.Contains(got, "2 ×time") || strings.Contains(got, "zstd/strata") {
		t.Errorf("the table of ratios is\n%s", got)
	}
	for _, name := range []string{"layers.svg", "import-zstd.svg", "boot.svg"} {
		b, err := os.ReadFile(filepath.Join(dir, "plots", name))
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(strings.NewReader(string(b))); err == nil; {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) || strings.Contains(string(b), "NaN") || strings.Contains(string(b), "Inf") {
			t.Errorf("%s: %v\n%s", name, err, b)
		}
	}
}

// TestRefused: a page without marks stays as it is, as does one where nothing was measured.
func TestRefused(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(doc, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{printed, "PASS\n", "BenchmarkX 1 many s\n"} {
		if err := run(strings.NewReader(in), io.Discard, doc, t.TempDir(), ""); err == nil {
			t.Errorf("no error for %.20q", in)
		}
	}
	if b, err := os.ReadFile(doc); err != nil || string(b) != "text" {
		t.Errorf("the page is %q, %v", b, err)
	}
}
