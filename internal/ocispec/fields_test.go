package ocispec

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the table of docs/status.md anew")

// leaves are the fields of a type that consist of no others, by path.
func leaves(t reflect.Type, path string) (out []string) {
	switch t.Kind() {
	case reflect.Pointer:
		return leaves(t.Elem(), path)
	case reflect.Slice:
		return leaves(t.Elem(), path+"[]")
	case reflect.Map:
		return leaves(t.Elem(), path+".*")
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if !f.Anonymous {
				out = append(out, leaves(f.Type, join(path, jsonName(f)))...)
			}
		}
		return out
	}
	return []string{path}
}

// covers reports whether a row stands for a field.
func covers(row, path string) bool {
	rest, ok := strings.CutPrefix(path, row)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// TestEachFieldHasARow: there is no field of the specification that the table says nothing of, and no row of a field
// that does not exist. A newer version of the specification fails here until its fields are decided on.
func TestEachFieldHasARow(t *testing.T) {
	all := leaves(reflect.TypeFor[specs.Spec](), "")
	if len(all) < 200 {
		t.Errorf("%d fields found; the specification has more", len(all))
	}
	for _, path := range all {
		if !slices.ContainsFunc(fields, func(f Field) bool { return covers(f.Path, path) }) {
			t.Errorf("%s: no row says whether it is honoured", path)
		}
	}
	seen := map[string]bool{}
	for _, f := range fields {
		if !slices.ContainsFunc(all, func(path string) bool { return covers(f.Path, path) }) {
			t.Errorf("%s: there is no such field", f.Path)
		}
		if seen[f.Path] {
			t.Errorf("%s: two rows", f.Path)
		}
		seen[f.Path] = true
	}
}

// set sets the field at a path of the table, and what it is in, to something that is not zero.
func set(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		set(v.Elem(), path)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		set(v.Index(0), strings.TrimPrefix(path, "[]"))
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		set(e, "")
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), e)
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(v.Type()) {
			if !f.Anonymous && (path == "" || covers(jsonName(f), strings.TrimPrefix(path, "."))) {
				set(v.FieldByIndex(f.Index), strings.TrimPrefix(strings.TrimPrefix(path, "."), jsonName(f)))
			}
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Interface:
		v.Set(reflect.ValueOf("x"))
	default:
		if v.CanInt() {
			v.SetInt(1)
		} else {
			v.SetUint(1)
		}
	}
}

// TestRefusedFields: a document with any one field that the table refuses is an error that names the field.
func TestRefusedFields(t *testing.T) {
	n := 0
	for _, f := range fields {
		if f.Refused == "" {
			continue
		}
		n++
		var s specs.Spec
		set(reflect.ValueOf(&s).Elem(), f.Path)
		if f.harmless != nil && f.Path == "linux.resources.memory.useHierarchy" {
			s.Linux.Resources.Memory.UseHierarchy = ptr(false)
		}
		err := Check(&s)
		want := strings.ReplaceAll(f.Path, "[]", "[0]") + ": not supported: " + f.Refused
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", f.Path, err, want)
		}
	}
	if n < 30 {
		t.Errorf("%d rows refuse something", n)
	}
}

// TestStatusTable compares the table in docs/status.md with the one here.
// "go test ./internal/ocispec -update" writes it anew.
func TestStatusTable(t *testing.T) {
	const begin = "<!-- fields: written by go test ./internal/ocispec -update -->\n"
	const end = "<!-- end of fields -->\n"
	path := filepath.Join("..", "..", "docs", "status.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(strings.ReplaceAll(string(b), "\r\n", "\n"), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := statusTable()
	if *update {
		if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s differs (go test ./internal/ocispec -update):\n%s", path, diff)
	}
}

func statusTable() string {
	var b strings.Builder
	b.WriteString("| field | |\n|---|---|\n")
	for _, f := range fields {
		what := "honoured"
		if f.Note != "" {
			what += ": " + f.Note
		}
		if f.Refused != "" {
			what = "refused: " + f.Refused
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.Path, what)
	}
	return b.String()
}
