package treecopy

import (
	"errors"
	"io"
)

// Pipe runs two functions concurrently, connected by a pipe. If one fails, so do the other's reads or writes.
func Pipe(send func(io.Writer) error, receive func(io.Reader) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := send(w)
		w.CloseWithError(err)
		sent <- err
	}()
	err := receive(r)
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // unblocks a sender that is not read to its end
	serr := <-sent
	if serr == nil || errors.Is(serr, io.ErrClosedPipe) || errors.Is(serr, err) || errors.Is(err, serr) {
		return err // both have the same cause
	}
	return errors.Join(serr, err)
}
