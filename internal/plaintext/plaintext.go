// Package plaintext makes text from elsewhere safe to show on a terminal and in a log: names of images and
// programs, what a guest or a registry says. Such text may hold escape sequences that move the cursor or
// rename the window, line ends that forge a line of our own, or characters that turn the direction of
// writing round so that a name reads as another one.
//
// What is not safe is escaped as in a Go string. What a program in a guest writes to its output is not text
// in this sense: it goes to the caller's output unchanged.
package plaintext

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// unsafe reports whether a character must not reach a terminal: everything that is not drawn (control and
// format characters, separators of lines and paragraphs, what is not assigned), and spaces that are not ' '.
func unsafe(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r)
}

// Line returns s as one line without anything that acts on a terminal. Text that is safe already is
// returned as it is; in other text the characters that are not are escaped, such as \n, \x1b or \u202e.
func Line(s string) string { return escape(s, "") }

// Text returns s as Line does, but keeps the ends of lines: each further line is indented, so that it cannot be
// taken for one of its own.
func Text(s string) string {
	if !strings.Contains(s, "\n") {
		return Line(s)
	}
	return strings.ReplaceAll(escape(strings.TrimRight(s, "\n"), "\n"), "\n", "\n  ")
}

// escape escapes the characters of s that are unsafe and not in keep.
func escape(s, keep string) string {
	bad := func(r rune) bool { return unsafe(r) && !strings.ContainsRune(keep, r) }
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case bad(r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// Sprintf is fmt.Sprintf with each argument that is text, an error or has a String method made safe first:
// errors as by Text, the others as by Line. The format is ours and stays as it is.
func Sprintf(format string, args ...any) string {
	safe := make([]any, len(args))
	for i, a := range args {
		safe[i] = argument(a)
	}
	return fmt.Sprintf(format, safe...)
}

// argument returns what is formatted instead of a. Quoting with %q escapes by itself: of a text that was
// escaped before, it would escape the backslashes again.
func argument(a any) any {
	switch a := a.(type) {
	case string:
		return line(a)
	case []string:
		out := make([]line, len(a))
		for i, s := range a {
			out[i] = line(s)
		}
		return out
	case error:
		return text(a.Error())
	case fmt.Formatter:
		return a
	case fmt.Stringer:
		return line(a.String())
	}
	return a
}

// line and text are strings that are formatted as Line and Text return them.
type (
	line string
	text string
)

func (l line) Format(f fmt.State, verb rune) { format(f, verb, string(l), Line) }
func (t text) Format(f fmt.State, verb rune) { format(f, verb, string(t), Text) }

func format(f fmt.State, verb rune, s string, safe func(string) string) {
	if verb != 'q' {
		s = safe(s)
	}
	fmt.Fprintf(f, fmt.FormatString(f, verb), s)
}

// Writer passes on text to W, and escapes what acts on a terminal but the ends of lines and tabs. It is for
// text that was put together elsewhere, such as a table.
type Writer struct{ W io.Writer }

// Write writes all of b, or returns an error. A character must not be split between two calls.
func (w Writer) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.W, escape(string(b), "\n\t")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// JSON returns a JSON document with the characters escaped that encoding/json leaves as they are though a
// terminal acts on them. Its meaning stays the same. It must be valid JSON.
func JSON(doc []byte) []byte {
	bad := func(r rune) bool { return r > 0x7e && unsafe(r) }
	if !bytes.ContainsFunc(doc, bad) {
		return doc
	}
	var b bytes.Buffer
	for _, r := range string(doc) {
		switch {
		case !bad(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}
