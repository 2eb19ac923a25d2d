package supervise

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// kind is the type of a frame.
type kind byte

const (
	kindStdin kind = iota
	kindStdout
	kindStderr
	kindNoMoreStdin
	kindResize // a size
	kindSignal // its number, one byte
	kindExit   // an Exit
	kindTaken  // acknowledges input: the number of bytes handed to the program's input, four bytes
)

// maxFrame is the maximum payload of a frame in bytes.
const maxFrame = 64 << 10

// header is the size of a frame's header: the kind, and the length in four bytes.
const header = 5

var errFrame = errors.New("what comes over the control socket is no frame")

// appendFrame appends a frame to out.
func appendFrame(out []byte, k kind, b []byte) []byte {
	out = append(out, byte(k))
	out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
	return append(out, b...)
}

// writeFrames writes b in as many frames as necessary, each by one Write.
func writeFrames(w io.Writer, k kind, b []byte) error {
	for {
		n := min(len(b), maxFrame)
		if _, err := w.Write(appendFrame(make([]byte, 0, header+n), k, b[:n])); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// readFrame reads a frame into buf, which has room for maxFrame bytes.
func readFrame(r io.Reader, buf []byte) (kind, []byte, error) {
	var h [header]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxFrame || kind(h[0]) > kindTaken {
		return 0, nil, errFrame
	}
	_, err := io.ReadFull(r, buf[:n])
	return kind(h[0]), buf[:n], err
}

// maxLineOf is the maximum size of a request or response in bytes. Arguments and environment may have 2 MiB.
const maxLineOf = 8 << 20

// readJSON reads a line of JSON. It reads single bytes, so as not to consume the frames that follow.
func readJSON(r io.Reader, v any) error {
	in := &byteReader{r: r, left: maxLineOf}
	var line []byte
	for {
		b, err := in.next()
		if err != nil {
			return err
		}
		if b == '\n' {
			break
		}
		line = append(line, b)
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("what comes over the control socket is no message: %w", err)
	}
	return nil
}

// byteReader reads single bytes, up to a limit.
type byteReader struct {
	r    io.Reader
	left int
	one  [1]byte
}

func (b *byteReader) next() (byte, error) {
	if b.left--; b.left < 0 {
		return 0, fmt.Errorf("%w: a message of more than %d bytes", errFrame, maxLineOf)
	}
	_, err := io.ReadFull(b.r, b.one[:])
	return b.one[0], err
}

// writeJSON writes a line of JSON.
func writeJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}
