// Package plaintext makes untrusted text safe for terminals and logs: names of images and programs, messages of guests
// and registries. Such text may contain escape sequences that move the cursor or rename the window, newlines that forge
// a log line, or bidirectional controls that make a name look like another one.
//
// Unsafe characters are escaped as in a Go string. The output of programs in a guest is not escaped: it is passed
// through unchanged.
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

// unsafe reports whether a character must not be written to a terminal: control and format characters, line and
// paragraph separators, unassigned characters, and spaces other than ' '.
func unsafe(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r)
}

// Line returns s with unsafe characters, including newlines, escaped, such as \n, \x1b or \u202e.
func Line(s string) string { return escape(s, "") }

// Text returns s as Line does, but keeps newlines: each line after the first is indented, so that it cannot be taken
// for a separate message.
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

// Sprintf is fmt.Sprintf with arguments escaped: errors as by Text; strings, byte slices and Stringers as by Line. The
// format is not escaped.
func Sprintf(format string, args ...any) string {
	safe := make([]any, len(args))
	for i, a := range args {
		safe[i] = argument(a)
	}
	return fmt.Sprintf(format, safe...)
}

// argument returns what is formatted instead of a. It escapes when it is formatted, because %q escapes by itself and
// would escape the backslashes again.
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

// line and text are strings that are formatted as by Line and Text.
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

// Writer writes text to W with unsafe characters except newlines and tabs escaped. It is for text that is formatted
// already, such as a table.
type Writer struct{ W io.Writer }

// Write writes all of b, or returns an error. A character must not be split between two calls.
func (w Writer) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.W, escape(string(b), "\n\t")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// JSON returns a JSON document with those unsafe characters escaped that encoding/json does not escape. The document
// must be valid; its meaning does not change.
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
