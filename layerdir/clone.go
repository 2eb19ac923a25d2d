package layerdir

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/stratavm/strata/internal/regfile"
)

const cloneChunk = 1 << 20

// cloneFile copies the file src to the empty file dst: by sharing its blocks if the file system can (reflink), else by
// copying everything but zeroes.
func cloneFile(ctx context.Context, dst *os.File, src string) (err error) {
	in, size, err := regfile.Open(src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	if reflink(dst, in) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return explain(err)
	}
	buf := make([]byte, cloneChunk)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		// Skip holes without reading them, where the system can find them.
		if off = nextData(in, off); off >= size {
			break
		}
		n, err := in.ReadAt(buf, off)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if err := writeNonZero(dst, buf[:n], off); err != nil {
			return explain(err)
		}
		off += int64(n)
	}
	return nil
}

// writeNonZero writes b at off, except for units of 4 KiB that are zero.
func writeNonZero(dst io.WriterAt, b []byte, off int64) error {
	const unit = 4096
	for start := 0; start < len(b); {
		end := start
		for end < len(b) && !allZero(b[end:min(end+unit, len(b))]) {
			end = min(end+unit, len(b))
		}
		if end > start {
			if _, err := dst.WriteAt(b[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		start = end
		for start < len(b) && allZero(b[start:min(start+unit, len(b))]) {
			start = min(start+unit, len(b))
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
