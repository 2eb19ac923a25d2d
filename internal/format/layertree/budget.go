package layertree

import (
	"fmt"
	"sync/atomic"
)

// imageFactor: the layers of an image may have so many times what one layer may.
const imageFactor = 4

// DefaultMaxImageBytes is how much the layers of an image may have together.
const DefaultMaxImageBytes = imageFactor * DefaultMaxBytes

// Budget is what the layers of an image may have together, whether they are read one after the other or at the same
// time. A nil Budget has no end.
type Budget struct {
	maxBytes                 int64
	bytes, entries, metadata atomic.Int64 // what is left
}

// NewBudget returns a Budget of so many bytes of files, and of four times the entries and the metadata of a layer.
func NewBudget(maxBytes int64) *Budget {
	b := &Budget{maxBytes: maxBytes}
	b.bytes.Store(maxBytes)
	b.entries.Store(imageFactor * DefaultMaxEntries)
	b.metadata.Store(imageFactor * DefaultMaxMetadata)
	return b
}

// content takes the content of a file out of the budget.
func (b *Budget) content(n int64) error {
	if b != nil && b.bytes.Add(-n) < 0 {
		return fmt.Errorf("the unpacked layers of the image exceed %d bytes: %w (raise the limit if you trust it)",
			b.maxBytes, ErrTooLarge)
	}
	return nil
}

// memory takes entries, and bytes of names and attributes, out of the budget.
func (b *Budget) memory(nodes, bytes int) error {
	if b == nil {
		return nil
	}
	if b.entries.Add(-int64(nodes)) < 0 {
		return fmt.Errorf("more than %d entries in the layers of the image: %w",
			imageFactor*DefaultMaxEntries, ErrTooLarge)
	}
	if b.metadata.Add(-int64(bytes)) < 0 {
		return fmt.Errorf("names, attributes and places of contents of the image's layers exceed %d bytes: %w",
			imageFactor*DefaultMaxMetadata, ErrTooLarge)
	}
	return nil
}
