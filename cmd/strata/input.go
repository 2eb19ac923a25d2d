package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// inputPiece is the buffer size for interruptible reads, in bytes.
const inputPiece = 1 << 20

// openInput is os.Open, but fails when ctx ends: opening a FIFO blocks until it has a writer.
func openInput(ctx context.Context, name string) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	c := make(chan opened)
	go func() {
		f, err := os.Open(name)
		select {
		case c <- opened{f, err}:
		case <-ctx.Done():
			if err == nil {
				f.Close() // the caller has gone
			}
		}
	}()
	select {
	case o := <-c:
		return o.f, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// interruptible returns a reader of in that fails as soon as ctx ends, even while a read of in blocks, such as that of
// a pipe. The blocked read goes on in the background until it returns or this process ends. The caller must close the
// reader.
func interruptible(ctx context.Context, in io.Reader) io.ReadCloser {
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		// Hide ReadFrom and WriteTo, which would copy in smaller pieces.
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{in}, make([]byte, inputPiece))
		w.CloseWithError(err)
	}()
	return r
}

// inputTime bounds reading a file named by an option, which may be a pipe.
var inputTime = 10 * time.Second // changed by a test

// readSmall reads a file of at most most bytes.
func readSmall(path string, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), inputTime,
		fmt.Errorf("%s: nothing comes from it for %v", path, inputTime))
	defer cancel()
	f, err := openInput(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := interruptible(ctx, f)
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return b, err
}
