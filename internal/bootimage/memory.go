package bootimage

import (
	"debug/elf"
	"fmt"
	"os"
)

// memoryOfOther is what a kernel takes that is no ELF file, as those of some architectures are.
const memoryOfOther = 64 << 20

// spare is what a guest needs besides: page tables, the page array, the agent. Measured with initrds of 13 and 23 MiB.
const spare = 6 << 20

// MinMemoryMiB returns how much memory a guest needs to boot kernel and initrd, which may be empty: the kernel itself;
// the initrd, which is unpacked while it is still in memory; and as the root file system of a guest takes half of what
// is free at most, as much again as it is unpacked. With less the kernel panics, or the guest never gets ready.
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

// kernelBytes is what the segments of a kernel take in memory.
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
