package erofs

import (
	"fmt"
	"sync/atomic"
)

// Estimated memory of data structures in bytes, without their strings.
const (
	nodeCost  = 320
	nameCost  = 64
	xattrCost = 48
	runCost   = 24 // a slice that grows has twice the room that it needs
)

// budget is a memory limit that several readers share.
type budget struct{ left atomic.Int64 }

func newBudget(n int64) *budget {
	b := &budget{}
	b.left.Store(n)
	return b
}

// take takes n bytes out of the budget.
func (b *budget) take(n int64) error {
	if b.left.Add(-n) < 0 {
		return fmt.Errorf("%w: reading it would take more memory than is allowed", ErrTooLarge)
	}
	return nil
}

// read accounts for n bytes of metadata that belong to a single file. Their sum exceeds the size of the image only if a
// hostile image lets files share them, to make a small image take much memory.
func (im *image) read(n int64) error {
	if im.unread -= n; im.unread < 0 {
		return im.corrupt("its metadata is larger than the image: files share what each must have by itself")
	}
	return nil
}
