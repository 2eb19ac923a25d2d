package gpt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/format/gpt"
)

func disk(t testing.TB, names []string, sizes []int64) (gpt.Layout, []byte) {
	t.Helper()
	l, err := gpt.Plan(names, sizes)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, l.Size)
	copy(b, l.Head)
	for i, p := range l.Partitions {
		b[p.Offset] = byte(i + 1)
		b[p.Offset+p.Size-1] = byte(i + 1)
	}
	copy(b[l.TailOffset:], l.Tail)
	return l, b
}

func numbered(n int) (names []string, sizes []int64) {
	for i := range n {
		names, sizes = append(names, fmt.Sprintf("layer %d ü", i)), append(sizes, int64(i+1)*1000)
	}
	return names, sizes
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 127, 128, 129, 255} {
		names, sizes := numbered(n)
		l, b := disk(t, names, sizes)
		if l.Size%gpt.Alignment != 0 || l.TailOffset+int64(len(l.Tail)) != l.Size {
			t.Errorf("%d partitions: size %d, tail of %d at %d", n, l.Size, len(l.Tail), l.TailOffset)
		}
		at := int64(len(l.Head))
		for i, p := range l.Partitions {
			if p.Offset != at || p.Offset%gpt.Alignment != 0 || p.Size%gpt.Alignment != 0 || p.Size < int64(i+1)*1000 {
				t.Errorf("%d partitions: partition %d is %+v, expected at %d", n, i, p, at)
			}
			at += p.Size
		}
		got, err := gpt.Read(bytes.NewReader(b), l.Size)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(l.Partitions, got); d != "" {
			t.Error(d)
		}
		clear(b[512:1024]) // the first header is lost: the copy serves
		if got, err = gpt.Read(bytes.NewReader(b), l.Size); err != nil || !cmp.Equal(l.Partitions, got) {
			t.Errorf("%d partitions, from the copy: %v, %v", n, got, err)
		}
	}
}

// TestSfdisk has another program look at the table.
func TestSfdisk(t *testing.T) {
	tool, err := exec.LookPath("sfdisk")
	if err != nil {
		t.Skip("sfdisk is not installed: install fdisk")
	}
	names, sizes := numbered(140)
	_, b := disk(t, names, sizes)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "--verify", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No errors detected") {
		t.Errorf("sfdisk: %v\n%s", err, out)
	}
}

func TestRefused(t *testing.T) {
	names, sizes := numbered(256)
	if _, err := gpt.Plan(names, sizes); !errors.Is(err, gpt.ErrTooMany) {
		t.Errorf("256 partitions: %v", err)
	}
	for _, size := range []int64{-1, 0, 1 << 62} {
		if _, err := gpt.Plan([]string{"x"}, []int64{size}); err == nil {
			t.Errorf("a partition of %d bytes was accepted", size)
		}
	}
	if _, err := gpt.Plan([]string{strings.Repeat("n", 37)}, []int64{1}); err == nil {
		t.Error("a name of 37 characters was accepted")
	}
	if _, err := gpt.Plan(nil, nil); err == nil {
		t.Error("no partitions were accepted")
	}
	l, whole := disk(t, []string{"a", "b"}, []int64{9000, 9000})
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
	}{
		{"empty", func([]byte) []byte { return nil }, gpt.ErrNoTable},
		{"zeroes", func(b []byte) []byte { return make([]byte, len(b)) }, gpt.ErrNoTable},
		{"both headers damaged", func(b []byte) []byte { b[512+40]++; b[len(b)-512+40]++; return b }, gpt.ErrCorrupt},
		{"both tables damaged", func(b []byte) []byte {
			b[1024+33]++
			b[l.TailOffset+int64(len(l.Tail))-512-128*128+33]++
			return b
		}, gpt.ErrCorrupt},
	} {
		b := c.change(bytes.Clone(whole))
		if _, err := gpt.Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	_, b := disk(f, []string{"a", "b"}, []int64{1, 5000})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := gpt.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > int64(len(b)) {
				t.Fatalf("%+v lies outside of %d bytes", p, len(b))
			}
		}
	})
}
