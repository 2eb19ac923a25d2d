package treecopy

import (
	"errors"
	"io"
)

// Pipe runs two functions at a time, of which one reads what the other writes. When either fails the other's reads or
// writes do.
func Pipe(send func(io.Writer) error, receive func(io.Reader) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := send(w)
		w.CloseWithError(err)
		sent <- err
	}()
	err := receive(r)
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // of what is not read, as after the end of a tar, too
	serr := <-sent
	if serr == nil || errors.Is(serr, io.ErrClosedPipe) || errors.Is(serr, err) || errors.Is(err, serr) {
		return err // the sender's is the receiver's, or the other way round
	}
	return errors.Join(serr, err)
}
