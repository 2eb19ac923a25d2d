package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type file struct {
	Header
	Content string
}

var sample = []file{
	{Header: Header{Name: "dir", Mode: TypeDir | 0o755}},
	{Header: Header{Name: "dir/empty", Mode: TypeRegular | 0o600, UID: 70000, GID: 4}},
	{Header: Header{Name: "dir/five", Mode: TypeRegular | 0o4755, ModTime: 1 << 31}, Content: "12345"},
	{Header: Header{Name: "link", Mode: TypeSymlink | 0o777}, Content: "dir/five"},
	{Header: Header{Name: "dev/console", Mode: TypeChar | 0o600, Major: 5, Minor: 1}},
	{Header: Header{Name: "n" + strings.Repeat("x", 200), Mode: TypeRegular | 0o644}, Content: "abc"},
}

func archive(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, f := range files {
		f.Size = int64(len(f.Content))
		if err := w.WriteHeader(f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readAll(r io.Reader) ([]file, error) {
	var out []file
	for cr := NewReader(r); ; {
		h, err := cr.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		b, err := io.ReadAll(cr)
		if err != nil {
			return out, err
		}
		out = append(out, file{h, string(b)})
	}
}

func TestRoundTrip(t *testing.T) {
	got, err := readAll(bytes.NewReader(archive(t, sample)))
	if err != nil {
		t.Fatal(err)
	}
	var want []file
	for i, f := range sample {
		f.Inode, f.Links, f.Size = uint32(i+1), 1, int64(len(f.Content))
		want = append(want, f)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestAgainstCpio has another program read what we write, where it is installed.
func TestAgainstCpio(t *testing.T) {
	bin, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed: apt-get install cpio")
	}
	cmd := exec.Command(bin, "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(archive(t, sample))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio -t: %v\n%s", err, out)
	}
	var names []string
	for _, f := range sample {
		names = append(names, f.Name)
	}
	if d := cmp.Diff(names, strings.Fields(string(out))); d != "" {
		t.Error(d)
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *Writer) error
		want error
	}{
		{"empty name", func(w *Writer) error { return w.WriteHeader(Header{}) }, ErrFormat},
		{"absolute name", func(w *Writer) error { return w.WriteHeader(Header{Name: "/etc"}) }, ErrFormat},
		{"name of the trailer", func(w *Writer) error { return w.WriteHeader(Header{Name: trailer}) }, ErrFormat},
		{"NUL", func(w *Writer) error { return w.WriteHeader(Header{Name: "a\x00b"}) }, ErrFormat},
		{"long name", func(w *Writer) error {
			return w.WriteHeader(Header{Name: strings.Repeat("x", MaxName+1)})
		}, ErrTooLarge},
		{"large file", func(w *Writer) error { return w.WriteHeader(Header{Name: "a", Size: MaxSize + 1}) }, ErrTooLarge},
		{"negative size", func(w *Writer) error { return w.WriteHeader(Header{Name: "a", Size: -1}) }, ErrTooLarge},
		{"too much", func(w *Writer) error {
			err := w.WriteHeader(Header{Name: "a", Size: 1})
			_, err2 := w.Write([]byte("xy"))
			return errors.Join(err, err2)
		}, ErrSize},
		{"too little", func(w *Writer) error {
			if err := w.WriteHeader(Header{Name: "a", Size: 1}); err != nil {
				return err
			}
			return w.Close()
		}, ErrSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.do(NewWriter(io.Discard)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	whole := archive(t, sample)
	for n := range len(whole) - 3 { // the last bytes pad the trailer
		if _, err := readAll(bytes.NewReader(whole[:n])); n < len(whole)-4 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut to %d bytes: got %v, want %v", n, err, io.ErrUnexpectedEOF)
		}
	}
	field := func(n int, v uint32) []byte {
		b := bytes.Clone(whole)
		copy(b[6+8*n:], fmt.Sprintf("%08x", v))
		return b
	}
	for name, b := range map[string][]byte{
		"magic":      append([]byte("070702"), whole[6:]...),
		"no number":  append([]byte("070701zzzzzzzz"), whole[14:]...),
		"no name":    field(11, 0),
		"huge name":  field(11, 1<<31),
		"short name": field(11, 2),
	} {
		if _, err := readAll(bytes.NewReader(b)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want %v", name, err, ErrFormat)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(archive(f, sample))
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := readAll(bytes.NewReader(b))
		if err != nil {
			return
		}
		// What was read can be written, and then reads the same.
		again, err := readAll(bytes.NewReader(archive(t, files)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range files {
			files[i].Inode, files[i].Links = again[i].Inode, again[i].Links // 0 is replaced by the writer
		}
		if d := cmp.Diff(files, again); d != "" {
			t.Error(d)
		}
	})
}
