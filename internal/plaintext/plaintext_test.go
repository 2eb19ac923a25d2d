package plaintext_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/plaintext"
)

// hostile is text that acts on a terminal, by what it does, and what is shown of it.
var hostile = []struct{ does, in, line, text string }{
	{"nothing", "/layers/a b ü 日本 \\n", "/layers/a b ü 日本 \\n", "/layers/a b ü 日本 \\n"},
	{"clears the screen", "a\x1b[2Jb", `a\x1b[2Jb`, `a\x1b[2Jb`},
	{"names the window", "\x1b]0;x\x07", `\x1b]0;x\a`, `\x1b]0;x\a`},
	{"C1 control", "a\u009b2Jb", `a\u009b2Jb`, `a\u009b2Jb`},
	{"C1 control as a byte", "a\x9b2Jb", `a\x9b2Jb`, `a\x9b2Jb`},
	{"forges a line", "a\nstrata: all is well", `a\nstrata: all is well`, "a\n  strata: all is well"},
	{"overwrites the line", "a\rb", `a\rb`, `a\rb`},
	{"takes characters back", "a\bb\x7f", `a\bb\x7f`, `a\bb\x7f`},
	{"shifts columns", "a\tb", `a\tb`, `a\tb`},
	{"turns the direction round", "exe\u202egpj.tar", `exe\u202egpj.tar`, `exe\u202egpj.tar`},
	{"isolates a direction", "\u2066a\u2069", `\u2066a\u2069`, `\u2066a\u2069`},
	{"cannot be seen", "a\u200bb\ufeff", `a\u200bb\ufeff`, `a\u200bb\ufeff`},
	{"separates lines and paragraphs", "a\u2028b\u2029c", `a\u2028b\u2029c`, `a\u2028b\u2029c`},
	{"looks like a space", "a\u00a0b", `a\u00a0b`, `a\u00a0b`},
	{"tags", "a\U000e0041", `a\U000e0041`, `a\U000e0041`},
	{"is no UTF-8", "a\xffb", `a\xffb`, `a\xffb`},
	{"NUL", "a\x00b", `a\x00b`, `a\x00b`},
}

func TestHostileText(t *testing.T) {
	for _, tt := range hostile {
		t.Run(tt.does, func(t *testing.T) {
			if got := plaintext.Line(tt.in); got != tt.line {
				t.Errorf("Line: %q, want %q", got, tt.line)
			}
			if got := plaintext.Text(tt.in); got != tt.text {
				t.Errorf("Text: %q, want %q", got, tt.text)
			}
			got := plaintext.Sprintf("image %s: %v, %v, %v, %-3d|", tt.in, errors.New(tt.in), []string{tt.in}, stringer(tt.in),
				7)
			want := fmt.Sprintf("image %s: %s, [%s], %s, 7  |", tt.line, tt.text, tt.line, tt.line)
			if got != want {
				t.Errorf("Sprintf: %q, want %q", got, want)
			}
			if got, want := plaintext.Sprintf("%q", tt.in), fmt.Sprintf("%q", tt.in); got != want {
				t.Errorf("quoted: %s, want %s", got, want)
			}
			var out bytes.Buffer
			fmt.Fprintf(plaintext.Writer{W: &out}, "NAME\t%s\n", tt.in)
			onlyDrawn(t, "Writer", out.String(), "\n\t")
			sameJSON(t, tt.in)
		})
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

// onlyDrawn checks that text holds nothing that acts on a terminal, but for the characters in allowed.
func onlyDrawn(t *testing.T, what, text, allowed string) {
	t.Helper()
	for _, r := range text {
		if !unicode.IsPrint(r) && !strings.ContainsRune(allowed, r) {
			t.Errorf("%s lets %U through: %q", what, r, text)
		}
	}
}

// sameJSON checks that a document holds nothing that acts on a terminal, and means what it meant.
func sameJSON(t *testing.T, text string) {
	t.Helper()
	doc, err := json.Marshal(map[string]string{text: text})
	if err != nil {
		t.Fatal(err)
	}
	safe := plaintext.JSON(doc)
	onlyDrawn(t, "JSON", string(safe), "\ufffd")
	var before, after any
	if err := errors.Join(json.Unmarshal(doc, &before), json.Unmarshal(safe, &after)); err != nil {
		t.Fatalf("%s: %v", safe, err)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Error(d)
	}
}

func FuzzText(f *testing.F) {
	for _, tt := range hostile {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		onlyDrawn(t, "Line", plaintext.Line(s), "")
		onlyDrawn(t, "Text", plaintext.Text(s), "\n")
		for i, line := range strings.Split(plaintext.Text(s), "\n") {
			if i > 0 && !strings.HasPrefix(line, "  ") {
				t.Errorf("a line of its own: %q", line)
			}
		}
		sameJSON(t, s)
	})
}
