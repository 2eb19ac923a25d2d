package image_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/stratavm/strata/image"
)

// TestZstdWindow: a frame that wants a window of 1 GiB, and with it that much memory, is refused.
func TestZstdWindow(t *testing.T) {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0} // one empty block
	for _, tt := range []struct {
		log  byte
		want error
	}{{27, nil}, {30, zstd.ErrWindowSizeExceeded}} {
		frame[5] = (tt.log - 10) << 3
		r, compressed, err := image.Decompress(bytes.NewReader(frame))
		if err != nil || !compressed {
			t.Fatal(compressed, err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, tt.want) {
			t.Errorf("window of 1<<%d: %v, want %v", tt.log, err, tt.want)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
