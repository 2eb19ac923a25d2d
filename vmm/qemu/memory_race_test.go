//go:build linux && race

package qemu

// residentLimit is 0: the race detector's own memory is several times what there is to measure. The
// test is run without it too.
const residentLimit = 0
