package ocispec

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrRefused is matched by Check's error about a field that is not supported.
var ErrRefused = errors.New("not supported")

// maxList is the maximum length of a list or map of a spec, enough for Linux's maximum number of arguments; maxText is
// the maximum length of a string in bytes.
const (
	maxList = 1 << 18
	maxText = 128 << 10
)

// Check returns an error unless all fields that are set in a spec are supported and valid. It joins the errors, each
// with the path of the field. An error about an unsupported field matches ErrRefused.
func Check(s *specs.Spec) error {
	var c checker
	c.value(reflect.ValueOf(s).Elem(), "", "", nil)
	if c.errs == nil {
		c.whole(s)
	}
	if c.errs != nil {
		return fmt.Errorf("the container's document: %w", errors.Join(c.errs...))
	}
	return nil
}

type checker struct {
	errs []error
}

// maxErrors bounds the errors of one spec.
const maxErrors = 8

func (c *checker) fail(path string, err error) {
	switch {
	case len(c.errs) < maxErrors:
		c.errs = append(c.errs, fmt.Errorf("%s%w", at(path), err))
	case len(c.errs) == maxErrors:
		c.errs = append(c.errs, errors.New("and more"))
	}
}

// value checks the value of a field. row is its path in the table of fields, path its path in the spec; under is the
// row that also covers the parts of an enclosing field, or nil.
func (c *checker) value(v reflect.Value, row, path string, under *Field) {
	if isUnset(v) {
		return
	}
	if f := rows[row]; f != nil {
		if f.Refused != "" {
			if f.harmless == nil || !f.harmless(v) {
				c.fail(path, fmt.Errorf("%w: %s", ErrRefused, f.Refused))
			}
			return
		}
		under = f
	}
	c.parts(v, row, path, under)
	if under != nil && under.Path == row && under.check != nil {
		if err := under.check(reflect.Indirect(v)); err != nil {
			c.fail(path, err)
		}
	}
}

// parts checks the elements and fields of a value.
func (c *checker) parts(v reflect.Value, row, path string, under *Field) {
	v = reflect.Indirect(v)
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(v.Type()) {
			if !f.Anonymous {
				c.value(v.FieldByIndex(f.Index), join(row, jsonName(f)), join(path, jsonName(f)), under)
			}
		}
	case reflect.Slice, reflect.Map:
		if v.Len() > maxList {
			c.fail(path, fmt.Errorf("it has %d entries, and may have %d", v.Len(), maxList))
			return
		}
		if v.Kind() == reflect.Slice {
			for i := range v.Len() {
				c.element(v.Index(i), row+"[]", path+"["+strconv.Itoa(i)+"]", under)
			}
			return
		}
		for k, e := range v.Seq2() {
			where := join(path, k.String())
			c.text(k.String(), where)
			c.element(e, row+".*", where, under)
		}
	default:
		if under == nil {
			c.fail(path, fmt.Errorf("%w: Strata does not know this field", ErrRefused))
			return
		}
		if v.Kind() == reflect.String {
			c.text(v.String(), path)
		}
	}
}

// element checks an element of a list or map, which counts as set even if it is zero.
func (c *checker) element(v reflect.Value, row, path string, under *Field) {
	if isUnset(v) && v.Kind() != reflect.Struct {
		return
	}
	if f := rows[row]; f != nil && f.check != nil {
		c.parts(v, row, path, f)
		if err := f.check(v); err != nil {
			c.fail(path, err)
		}
		return
	}
	c.parts(v, row, path, under)
}

func (c *checker) text(s, path string) {
	switch {
	case len(s) > maxText:
		c.fail(path, fmt.Errorf("it has %d bytes, and may have %d", len(s), maxText))
	case strings.ContainsRune(s, 0):
		c.fail(path, errors.New("it contains a NUL byte"))
	case !utf8.ValidString(s):
		c.fail(path, errors.New("it is not UTF-8, which a document has to be"))
	}
}

// isUnset reports whether a field is zero or empty.
func isUnset(v reflect.Value) bool {
	if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// whole checks required fields and dependencies between fields.
func (c *checker) whole(s *specs.Spec) {
	switch {
	case s.Version == "":
		c.fail("ociVersion", errors.New("it is missing"))
	case s.Process == nil || len(s.Process.Args) == 0 || s.Process.Args[0] == "":
		c.fail("process.args", errors.New("there is no program to run"))
	case s.Process.Cwd == "":
		c.fail("process.cwd", errors.New("it is missing"))
	}
	if s.Process != nil {
		c.once("process.rlimits", len(s.Process.Rlimits), func(i int) string { return s.Process.Rlimits[i].Type })
	}
	c.required(s)
	c.once("mounts", len(s.Mounts), func(i int) string { return cleanPath(s.Mounts[i].Destination) })
	linux := s.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	c.once("linux.namespaces", len(linux.Namespaces), func(i int) string { return string(linux.Namespaces[i].Type) })
	c.once("linux.devices", len(linux.Devices), func(i int) string { return cleanPath(linux.Devices[i].Path) })
	has := map[specs.LinuxNamespaceType]bool{}
	for _, n := range linux.Namespaces {
		has[n.Type] = true
	}
	for _, t := range []specs.LinuxNamespaceType{
		specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
	} {
		if !has[t] {
			c.fail("linux.namespaces", fmt.Errorf("%s is missing: a container has one of its own", t))
		}
	}
	for key := range linux.Sysctl {
		if strings.HasPrefix(sysctlName(key), "net.") && !has[specs.NetworkNamespace] {
			c.fail(join("linux.sysctl", key),
				errors.New("without a network namespace it would change the host's network"))
		}
	}
	for i, m := range s.Mounts {
		if err := checkMount(m, has[specs.CgroupNamespace]); err != nil {
			c.fail(fmt.Sprintf("mounts[%d]", i), err)
		}
	}
	c.resources(linux.Resources)
}

// resources checks dependencies between limits.
func (c *checker) resources(r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if i, err := checkDeviceRules(r.Devices); err != nil {
		c.fail(fmt.Sprintf("linux.resources.devices[%d]", i), err)
	}
	if r.Memory == nil {
		return
	}
	if m := r.Memory; m.Swap != nil && *m.Swap > 0 && (m.Limit == nil || *m.Limit > *m.Swap) {
		c.fail("linux.resources.memory.swap",
			errors.New("it is the sum of memory and swap, and needs a limit that is not more"))
	}
}

// CheckResources is Check for resource limits alone, as for an update of a running container.
func CheckResources(r *specs.LinuxResources) error {
	var c checker
	const path = "linux.resources"
	c.value(reflect.ValueOf(r), path, path, nil)
	if c.resources(r); c.errs != nil {
		return errors.Join(c.errs...)
	}
	return nil
}

// required adds errors for list elements without a required field.
func (c *checker) required(s *specs.Spec) {
	missing := func(list string, i int, field, value string) {
		if value == "" {
			c.fail(fmt.Sprintf("%s[%d].%s", list, i, field), errors.New("it is missing"))
		}
	}
	if s.Linux == nil {
		return
	}
	for i, n := range s.Linux.Namespaces {
		missing("linux.namespaces", i, "type", string(n.Type))
	}
	for i, d := range s.Linux.Devices {
		missing("linux.devices", i, "path", d.Path)
		missing("linux.devices", i, "type", d.Type)
	}
	if s.Linux.Resources != nil {
		for i, h := range s.Linux.Resources.HugepageLimits {
			missing("linux.resources.hugepageLimits", i, "pageSize", h.Pagesize)
		}
	}
}

// once adds an error if two elements of a list have the same name.
func (c *checker) once(list string, n int, name func(i int) string) {
	seen := map[string]int{}
	for i := range n {
		if first, ok := seen[name(i)]; ok {
			c.fail(fmt.Sprintf("%s[%d]", list, i), fmt.Errorf("%q is there twice, as %d and %d", name(i), first, i))
			continue
		}
		seen[name(i)] = i
	}
}
