package image_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestZstdWindow: a frame that wants a window of 1 GiB, and with it that much memory, is refused.
func TestZstdWindow(t *testing.T) {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0} // one empty block
	for _, tt := range []struct {
		log  byte
		want error
	}{{27, nil}, {30, zstd.ErrWindowSizeExceeded}} {
		frame[5] = (tt.log - 10) << 3
		r, err := image.Decompress(bytes.NewReader(frame))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, tt.want) {
			t.Errorf("window of 1<<%d: %v, want %v", tt.log, err, tt.want)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDecompress: what was compressed comes back, what is cut off says so, and a reader may leave early.
func TestDecompress(t *testing.T) {
	leaktest.Check(t)
	content := bytes.Repeat([]byte("some content "), 1<<20)
	for _, how := range []string{"", "gzip", "zstd"} {
		b := imagetest.Compress(t, how, content)
		for _, tt := range []struct {
			from []byte
			n    int64 // that are read
			want error
		}{{b, int64(len(content)) + 1, io.EOF}, {b, 10, nil}, {b[:len(b)/2], int64(len(content)), io.ErrUnexpectedEOF}} {
			r, err := image.Decompress(bytes.NewReader(tt.from))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			_, err = io.CopyN(&got, r, tt.n)
			if how == "" && tt.want == io.ErrUnexpectedEOF {
				tt.want = io.EOF // nothing tells that it is cut off
			}
			if !errors.Is(err, tt.want) || !bytes.HasPrefix(content, got.Bytes()) {
				t.Errorf("%q: %d bytes of %d: %v, want %v", how, got.Len(), tt.n, err, tt.want)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestAfterGzip: members follow one another, and zeroes the last one, as gzip -d reads them; nothing else may.
func TestAfterGzip(t *testing.T) {
	a, b := bytes.Repeat([]byte("first "), 50_000), bytes.Repeat([]byte("second "), 50_000)
	zip := func(b []byte) []byte { return imagetest.Compress(t, "gzip", b) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		from, want []byte
		ok         bool
	}{
		"one":                   {zip(a), a, true},
		"two":                   {join(zip(a), zip(b)), join(a, b), true},
		"an empty one between":  {join(zip(a), zip(nil), zip(b), zip(nil)), join(a, b), true},
		"empty":                 {zip(nil), nil, true},
		"zeroes":                {join(zip(a), make([]byte, 512)), a, true},
		"one zero":              {join(zip(a), zip(b), make([]byte, 1)), join(a, b), true},
		"many zeroes":           {join(zip(a), make([]byte, 1<<20)), a, true},
		"garbage":               {join(zip(a), []byte("garbage!")), a, false},
		"garbage behind zeroes": {join(zip(a), make([]byte, 5000), []byte("x")), a, false},
		"a member cut off":      {join(zip(a), zip(b)[:9]), a, false},
		"a member's first byte": {join(zip(a), zip(b)[:1]), a, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := image.Decompress(bytes.NewReader(tt.from))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if (err == nil) != tt.ok || !bytes.Equal(got, tt.want) {
				t.Errorf("%d bytes of %d, %v", len(got), len(tt.want), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
