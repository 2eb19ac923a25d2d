package uvm

import (
	"math/bits"

	"github.com/stratavm/strata/vmm"
)

// slotTable tracks which slots of the machine are taken.
type slotTable struct {
	luns   int // per controller
	scsi   bitmap
	vpmem  bitmap
	nics   bitmap
	shares bitmap // of virtiofs
}

func newSlotTable(lim vmm.Limits) slotTable {
	t := slotTable{
		luns:   int(lim.SCSILUNs),
		scsi:   newBitmap(int(lim.SCSIControllers) * int(lim.SCSILUNs)),
		vpmem:  newBitmap(int(lim.VPMEMDevices)),
		nics:   newBitmap(int(lim.NICs)),
		shares: newBitmap(int(lim.VirtioFSShares)),
	}
	for _, s := range lim.ReservedSCSI {
		t.scsi.set(int(s.Controller)*t.luns+int(s.LUN), true)
	}
	for i := range int(lim.VPMEMReserved) {
		t.vpmem.set(i, true)
	}
	return t
}

// mark marks the slot of a device as taken or free.
func (t *slotTable) mark(d vmm.Device, taken bool) {
	switch d := d.(type) {
	case vmm.SCSIDisk:
		t.scsi.set(int(d.Controller)*t.luns+int(d.LUN), taken)
	case vmm.VPMEMDevice:
		t.vpmem.set(int(d.Slot), taken)
	case vmm.NIC:
		t.nics.set(int(d.Slot), taken)
	case vmm.VirtioFSShare:
		t.shares.set(int(d.Slot), taken)
	}
}

// freeSCSI returns the lowest free slot, controller by controller.
func (t *slotTable) freeSCSI() (controller, lun uint8, ok bool) {
	i := t.scsi.firstFree()
	if i < 0 {
		return 0, 0, false
	}
	return uint8(i / t.luns), uint8(i % t.luns), true
}

// bitmap is a set of the integers 0 to n-1 that finds the smallest one not in it.
type bitmap struct {
	words []uint64
	n     int
	hint  int // index of the first word that may have a free bit
}

func newBitmap(n int) bitmap { return bitmap{words: make([]uint64, (n+63)/64), n: n} }

func (b *bitmap) set(i int, on bool) {
	if i < 0 || i >= b.n {
		return // beyond the limits of this VM: never allocated
	}
	if on {
		b.words[i/64] |= 1 << (i % 64)
		return
	}
	b.words[i/64] &^= 1 << (i % 64)
	b.hint = min(b.hint, i/64)
}

func (b *bitmap) firstFree() int {
	for ; b.hint < len(b.words); b.hint++ {
		if w := b.words[b.hint]; w != ^uint64(0) {
			if i := b.hint*64 + bits.TrailingZeros64(^w); i < b.n {
				return i
			}
		}
	}
	return -1
}
