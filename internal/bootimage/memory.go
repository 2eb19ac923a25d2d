package bootimage

import (
	"debug/elf"
	"fmt"
	"os"
)

// memoryOfOther is the assumed memory of a kernel that is no ELF file, as on some architectures, in bytes.
const memoryOfOther = 64 << 20

// spare is the additional memory that a guest needs, for page tables, the page array and the agent, in bytes. Measured
// with initrds of 13 and 23 MiB.
const spare = 6 << 20

// MinMemoryMiB returns the memory that a guest needs to boot kernel and initrd, which may be empty: that of the kernel;
// of the initrd, which is in memory while it is unpacked; and twice the unpacked size, because the guest's root file
// system uses at most half of the free memory. With less the kernel panics, or the guest does not become ready.
func MinMemoryMiB(kernel, initrd string) (int, error) {
	k, err := kernelBytes(kernel)
	if err != nil {
		return 0, fmt.Errorf("bootimage: the kernel's size: %w", err)
	}
	var packed int64
	if initrd != "" {
		fi, err := os.Stat(initrd)
		if err != nil {
			return 0, fmt.Errorf("bootimage: the initrd's size: %w", err)
		}
		packed = fi.Size()
	}
	const mib = 1 << 20
	return int((k + 3*packed + spare + mib - 1) / mib), nil
}

// kernelBytes returns the size of a kernel's segments in memory.
func kernelBytes(path string) (n int64, err error) {
	f, err := elf.Open(path)
	if err != nil {
		if fi, serr := os.Stat(path); serr == nil {
			return max(fi.Size(), memoryOfOther), nil // no ELF file
		}
		return 0, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			n += int64(min(p.Memsz, 1<<40))
		}
	}
	return n, f.Close()
}
