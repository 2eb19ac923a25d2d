package standin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
)

// maxMessage bounds a message; documents of the service are far smaller.
const maxMessage = 64 << 20

var errMessage = errors.New("malformed message")

// reader takes values off a message. After the first error all values are zero.
type reader struct {
	data []byte
	err  error
}

func readMessage(r io.Reader) (*reader, error) {
	var n uint32
	if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
		return nil, err
	}
	if n > maxMessage {
		return nil, fmt.Errorf("%w of %d bytes", errMessage, n)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return &reader{data: data}, err
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.data) {
		r.err = fmt.Errorf("%w: it ends early", errMessage)
	}
	if r.err != nil {
		return make([]byte, min(n, 8))
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

// value takes one value: uint64, string, []byte or nil.
func (r *reader) value() any {
	switch tag := r.take(1)[0]; tag {
	case 'U':
		return binary.LittleEndian.Uint64(r.take(8))
	case 'B':
		return r.take(int(binary.LittleEndian.Uint32(r.take(4))))
	case 'S':
		raw := r.take(2 * int(binary.LittleEndian.Uint32(r.take(4))))
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(raw[2*i:])
		}
		return string(utf16.Decode(units))
	case 'N':
	default:
		r.err = errors.Join(r.err, fmt.Errorf("%w: value %q", errMessage, tag))
	}
	return nil
}

// next takes a value of one type; a null gives the zero value.
func next[T any](r *reader) T {
	var zero T
	v := r.value()
	t, ok := v.(T)
	if !ok && v != nil {
		r.err = errors.Join(r.err, fmt.Errorf("%w: a %T where a %T belongs", errMessage, v, zero))
	}
	return t
}

func (r *reader) number() uint64 { return next[uint64](r) }
func (r *reader) text() string   { return next[string](r) }
func (r *reader) bytes() []byte  { return next[[]byte](r) }

// appendValue adds a value. An empty string is a null: results that there are not.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case uint64:
		return binary.LittleEndian.AppendUint64(append(b, 'U'), v)
	case []byte:
		return append(binary.LittleEndian.AppendUint32(append(b, 'B'), uint32(len(v))), v...)
	case string:
		if v == "" {
			break
		}
		units := utf16.Encode([]rune(v))
		b = binary.LittleEndian.AppendUint32(append(b, 'S'), uint32(len(units)))
		for _, u := range units {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	return append(b, 'N')
}

func writeMessage(w io.Writer, body []byte) error {
	_, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}
