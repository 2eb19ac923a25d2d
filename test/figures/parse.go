package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// result is what the lines of one benchmark say.
type result struct {
	pkg    string // that it is of, below the module
	name   string
	rounds int // of all lines
	units  []string
	values map[string][]float64 // by unit, one of each line
}

var procs = regexp.MustCompile(`-\d+$`)

const module = "github.com/stratavm/strata"

// parse reads lines of benchmarks: the name, the number of rounds, and pairs of value and unit. Of others it heeds those
// that name the package.
func parse(in io.Reader) ([]*result, error) {
	var all []*result
	byName, pkg := map[[2]string]*result{}, ""
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 2 && f[0] == "pkg:" {
			pkg = strings.TrimPrefix(strings.TrimPrefix(f[1], module), "/")
		}
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		rounds, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		name := procs.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
		r := byName[[2]string{pkg, name}]
		if r == nil {
			r = &result{pkg: pkg, name: name, values: map[string][]float64{}}
			byName[[2]string{pkg, name}], all = r, append(all, r)
		}
		r.rounds += rounds
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f[0], err)
			}
			if unit := f[i+1]; unit != "ns/op" || v != 0 { // which benchmarks set to 0 that measure something else
				if r.values[unit] == nil {
					r.units = append(r.units, unit)
				}
				r.values[unit] = append(r.values[unit], v)
			}
		}
	}
	return all, lines.Err()
}

// median returns the median of a unit, and whether there is one.
func (r *result) median(unit string) (float64, bool) {
	v := slices.Sorted(slices.Values(r.values[unit]))
	if len(v) == 0 {
		return 0, false
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, true
}

// ratios are the medians of what is a ratio, but of those to itself.
func (r *result) ratios() string {
	var out []string
	for _, unit := range r.units {
		if m, _ := r.median(unit); strings.HasPrefix(unit, "×") && m != 1 {
			out = append(out, number(m)+" "+unit)
		}
	}
	return strings.Join(out, "  ")
}

func (r *result) figures() string {
	var out []string
	for _, unit := range r.units {
		m, _ := r.median(unit)
		text := number(m)
		if v := r.values[unit]; len(v) > 1 {
			text += fmt.Sprintf(" (%s – %s)", number(slices.Min(v)), number(slices.Max(v)))
		}
		out = append(out, text+" "+unit)
	}
	return strings.ReplaceAll(strings.Join(out, ", "), "|", `\|`)
}

// number is a value with three digits that count.
func number(v float64) string {
	if v >= 1000 || v <= -1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
