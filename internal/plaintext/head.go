package plaintext

import "bytes"

// Head is a writer that keeps the first bytes written to it and discards the rest. Its methods must not be called
// concurrently.
type Head struct {
	buf  bytes.Buffer
	most int
}

// NewHead returns a Head that keeps at most most bytes.
func NewHead(most int) *Head { return &Head{most: most} }

// Write implements io.Writer. It never fails.
func (h *Head) Write(b []byte) (int, error) {
	h.buf.Write(b[:min(len(b), h.most-h.buf.Len())])
	return len(b), nil
}

// Bytes returns what is kept.
func (h *Head) Bytes() []byte { return h.buf.Bytes() }

// String returns what is kept.
func (h *Head) String() string { return h.buf.String() }
