package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// inputPiece is how much is read at a time of what may have to be waited for.
const inputPiece = 1 << 20

// openInput is os.Open, but ends with ctx: a FIFO cannot be opened before somebody writes to it.
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
				f.Close() // nobody has read it
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

// interruptible returns a reader of in that fails as soon as ctx ends, also while in has to be waited for, as a pipe
// has whose writer hangs. A read of in that is under way then is left alone: it ends with this process, or when the
// other end is closed. The reader is to be closed.
func interruptible(ctx context.Context, in io.Reader) io.ReadCloser {
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		// Without the methods of files that copy by themselves, in small pieces.
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{in}, make([]byte, inputPiece))
		w.CloseWithError(err)
	}()
	return r
}

// inputTime bounds how long what an option names is read: it may be a pipe.
var inputTime = 10 * time.Second // changed by a test

// readSmall reads a file of at most so many bytes.
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
