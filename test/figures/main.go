// Command figures reads what benchmarks print on standard input, ends with a table of their ratios, and writes figures
// and plots into a page of the documentation: with -doc FILE, between two marks, and with -plots DIR.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Marks in the page. What is between them is written anew.
const (
	beginMark = "<!-- figures: written by make bench -->"
	endMark   = "<!-- end of figures -->"
)

func main() {
	doc := flag.String("doc", "", "page to write the figures into")
	plots := flag.String("plots", "", "folder of the plots, below that of the page")
	host := flag.String("host", "", "a sentence about machine, versions and date")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *doc, *plots, *host); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, doc, plots, host string) error {
	all, err := parse(in)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("there is no benchmark's line in what go test printed")
	}
	w := bufio.NewWriter(out)
	for _, r := range all {
		if text := r.ratios(); text != "" {
			fmt.Fprintf(w, "%-48s %s\n", r.name, text)
		}
	}
	if err := w.Flush(); err != nil || doc == "" {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n\n%s\n", beginMark, host)
	for _, p := range plotsOf(all) {
		if err := os.MkdirAll(plots, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(plots, p.file), []byte(p.svg), 0o644); err != nil {
			return err
		}
		rel, err := filepath.Rel(filepath.Dir(doc), filepath.Join(plots, p.file))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "\n![%s](%s)\n", p.title, filepath.ToSlash(rel))
	}
	text.WriteString("\n| package | benchmark | rounds | figures: median (least – greatest) |\n|---|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(&text, "| %s | %s | %d | %s |\n", r.pkg, r.name, r.rounds, r.figures())
	}
	fmt.Fprintf(&text, "\n%s", endMark)
	return replace(doc, text.String())
}

// replace writes text in the place of what is between the marks of a page.
func replace(doc, text string) error {
	page, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	before, rest, begun := strings.Cut(string(page), beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !begun || !ended {
		return fmt.Errorf("%s has no lines %q and %q to write between", doc, beginMark, endMark)
	}
	return os.WriteFile(doc, []byte(before+text+after), 0o644)
}
