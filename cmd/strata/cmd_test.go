package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v3"
)

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int64 // 0: refused
	}{
		{"1", 1}, {"512", 512}, {"4K", 4096}, {"4k", 4096}, {"64M", 64 << 20}, {"64MB", 64 << 20}, {"64MiB", 64 << 20},
		{"20G", 20 << 30}, {"3T", 3 << 40},
		{"", 0}, {"0", 0}, {"-1", 0}, {"1.5G", 0}, {"G", 0}, {"10 G", 0}, {"10GG", 0}, {"9999999999999T", 0}, {"1E", 0},
		{"0x10", 0},
	} {
		got, err := parseSize(tt.in)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("parseSize(%q) = %d, %v; want %d", tt.in, got, err, tt.want)
		}
	}
}

func TestSplitArgs(t *testing.T) {
	head, tail := splitArgs([]string{"strata", "run", "x", "--", "sh", "--", "-c"})
	if d := cmp.Diff([][]string{{"strata", "run", "x"}, {"sh", "--", "-c"}}, [][]string{head, tail}); d != "" {
		t.Error(d)
	}
	if head, tail = splitArgs([]string{"strata", "ls"}); len(head) != 2 || tail != nil {
		t.Errorf("got %q and %q", head, tail)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"/layers/a b": "/layers/a b", "/ü": "/ü", "a\nb": `a\nb`, "\x1b[2J": `\x1b[2J`, "\xff": `\xff`,
		"a\u202eb": `a\u202eb`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %s, want %s", in, got, want)
		}
	}
}

// TestTables: what is in a cell makes no other cells and rows, in any table.
func TestTables(t *testing.T) {
	var out bytes.Buffer
	e := &env{stdout: &out}
	err := e.print(&cli.Command{Name: "x"}, nil, func(w io.Writer) {
		row(w, "%s\t%s\t%d\t%q\t%.3s\n", "a\tb", "c\nd\x1b[2J", 1, []string{"e\tf"}, "g\vhij")
		row(w, "%s\t%v\n", "k\fl", errors.New("m\tn"))
	})
	if want := `a\tb  c\nd\x1b[2J  1  ["e\tf"]  g\v` + "\n" + `k\fl  m\tn` + "\n"; err != nil || out.String() != want {
		t.Errorf("got %q, %v; want %q", out.String(), err, want)
	}
	// All tables are written so.
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			if strings.Contains(l, `fmt.Fprintf(w, "`) && strings.Contains(l, `\t`) && !strings.HasSuffix(f, "_test.go") {
				t.Errorf("%s: a row that is not written by row: %s", f, l)
			}
		}
	}
}

func TestProgress(t *testing.T) {
	for _, tt := range []struct {
		name     string
		terminal bool
		total    int64
		want     []string
		not      string
	}{
		{"lines", false, 1 << 20, []string{"x.tar  50% of 1.0 MiB"}, "\r"},
		{"bar", true, 1 << 20, []string{"\r\x1b[K[############............] x.tar  50% of 1.0 MiB", "\r\x1b[K"}, "\n"},
		{"size not known", true, 0, []string{"x.tar 512.0 KiB"}, "%"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			now := time.Unix(0, 0)
			p := newProgress(&out, "x.tar", tt.total, false)
			p.terminal, p.now, p.start, p.last = tt.terminal, func() time.Time { return now }, now, now
			p.set(1 << 19)
			if out.Len() > 0 {
				t.Errorf("shown at once: %q", out.String())
			}
			now = now.Add(lineEvery)
			p.set(1 << 19)
			p.set(1<<19 + 1) // not again so soon
			p.finish()
			got := out.String()
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("got %q, want %q in it", got, w)
				}
			}
			if strings.Contains(got, tt.not) {
				t.Errorf("got %q, with %q in it", got, tt.not)
			}
			if n := strings.Count(got, "x.tar"); n != 1 {
				t.Errorf("shown %d times", n)
			}
		})
	}
}
