package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/plaintext"
)

// maxFormat bounds the output of a template for one item, in bytes.
const maxFormat = 1 << 20

// templateFuncs are the functions of templates, with docker's names.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
	"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
}

// formatFlag is --format.
func formatFlag(fields string) cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"},
		Usage: "`TEMPLATE` of Go for each, such as " + fields + "; json: as --json"}
}

// parseTemplate parses --format, in which \t and \n are a tab and a newline, as with docker.
func parseTemplate(cmd *cli.Command) (*template.Template, error) {
	text := strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(cmd.String("format"))
	if strings.HasPrefix(text, "table ") {
		return nil, usage(cmd, "--format: %q: a table is what there is without --format", cmd.String("format"))
	}
	t, err := template.New("").Option("missingkey=error").Funcs(templateFuncs).Parse(text)
	if err != nil {
		return nil, usage(cmd, "--format: %s", strings.TrimPrefix(err.Error(), "template: "))
	}
	return t, nil
}

// formatEach prints each item with the template of --format on a line.
func formatEach[T any](e *env, cmd *cli.Command, list []T) error {
	t, err := parseTemplate(cmd)
	if err != nil {
		return err
	}
	for _, v := range list {
		out := bounded{left: maxFormat}
		if err := t.Execute(&out, v); err != nil {
			return fmt.Errorf("--format: %s", strings.TrimPrefix(err.Error(), "template: "))
		}
		if _, err := fmt.Fprintln(plaintext.Writer{W: e.stdout}, out.String()); err != nil {
			return err
		}
	}
	return nil
}

// bounded is a buffer of limited size.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("more than %s for one thing: %w", size(maxFormat), io.ErrShortWrite)
	}
	return b.Buffer.Write(p)
}
