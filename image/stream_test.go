package image_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/image/imagetest"
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
