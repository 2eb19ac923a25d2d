package ocispec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxSize is the maximum size of a spec in bytes of JSON.
const MaxSize = 4 << 20

// Decode decodes a spec from a JSON object of at most MaxSize bytes, and calls Check. Unknown and duplicate fields, and
// fields that differ in case, are errors that name the field.
func Decode(r io.Reader) (*specs.Spec, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the container's document: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("the container's document has more than %d MiB", MaxSize>>20)
	}
	var s specs.Spec
	err = strict(bytes.NewReader(b), reflect.TypeFor[specs.Spec]())
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		err = fmt.Errorf("%sit is a JSON %s, which does not fit", at(wrong.Field), wrong.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("the container's document: %w", err)
	}
	if err := Check(&s); err != nil {
		return nil, err
	}
	if s.Process.Capabilities == nil { // no capabilities, rather than the defaults of a partial spec
		s.Process.Capabilities = &specs.LinuxCapabilities{}
	}
	return &s, nil
}

// maxDepth is the maximum nesting depth of JSON; that of the OCI spec is 8.
const maxDepth = 32

// strict returns an error unless r contains one JSON value whose objects have only fields of t, each at most once and
// in the exact case of its tag. It does not check the types of values, which encoding/json does.
func strict(r io.Reader, t reflect.Type) error {
	d := json.NewDecoder(r)
	d.UseNumber()
	if err := strictValue(d, t, "", maxDepth); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON document")
	}
	return nil
}

// next returns the next token of the field at path. The end of the input is an error.
func next(d *json.Decoder, path string) (json.Token, error) {
	token, err := d.Token()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the JSON ends too early")
	}
	if err != nil {
		return nil, fmt.Errorf("%s%w", at(path), err)
	}
	return token, nil
}

func strictValue(d *json.Decoder, t reflect.Type, path string, depth int) error {
	token, err := next(d, path)
	if err != nil {
		return err
	}
	if depth == 0 {
		return fmt.Errorf("%smore than %d objects and lists in each other", at(path), maxDepth)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		t = nil // it implements json.Unmarshaler
	}
	switch token {
	case json.Delim('{'):
		return strictObject(d, t, path, depth)
	case json.Delim('['):
		var of reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			of = t.Elem()
		}
		for i := 0; d.More(); i++ {
			if err := strictValue(d, of, path+"["+strconv.Itoa(i)+"]", depth-1); err != nil {
				return err
			}
		}
		_, err := next(d, path)
		return err
	case nil:
		if path == "" {
			return errors.New("the JSON document is null")
		}
		if strings.HasSuffix(path, "]") { // it would become a nil pointer in a list
			return fmt.Errorf("%san element of a list is null", at(path))
		}
	}
	return nil
}

func strictObject(d *json.Decoder, t reflect.Type, path string, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		token, err := next(d, path)
		if err != nil {
			return err
		}
		name := token.(string) // what the package json says of the keys of objects
		where := strings.TrimPrefix(path+"."+name, ".")
		if seen[name] {
			return fmt.Errorf("%s: the field is written twice", printable(where))
		}
		seen[name] = true
		var of reflect.Type
		switch {
		case t == nil:
		case t.Kind() == reflect.Map:
			of = t.Elem()
		case t.Kind() == reflect.Struct:
			f, ok := fieldNamed(t, name)
			if !ok {
				return fmt.Errorf("%s: there is no such field", printable(where))
			}
			of = f.Type
		}
		if err := strictValue(d, of, where, depth-1); err != nil {
			return err
		}
	}
	_, err := next(d, path)
	return err
}

// fieldNamed returns the field of t with a JSON name, including those of embedded structs, over which fields of t
// itself take precedence.
func fieldNamed(t reflect.Type, name string) (found reflect.StructField, ok bool) {
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && !f.Anonymous && jsonName(f) == name && (!ok || len(f.Index) < len(found.Index)) {
			found, ok = f, true
		}
	}
	return found, ok
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "" {
		return f.Name
	}
	return name
}

// at returns the prefix of an error about the field at path.
func at(path string) string {
	if path == "" {
		return ""
	}
	return printable(path) + ": "
}

// printable returns a field's path safe for display: keys of maps are untrusted.
func printable(path string) string {
	const limit = 200
	if len(path) > limit {
		path = path[:limit] + "..."
	}
	if slices.ContainsFunc([]rune(path), func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(path)
	}
	return path
}
