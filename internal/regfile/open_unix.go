//go:build !windows

package regfile

import "syscall"

// nonblock prevents opening a FIFO from blocking until it has a writer.
const nonblock = syscall.O_NONBLOCK
