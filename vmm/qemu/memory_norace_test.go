//go:build linux && !race

package qemu

// residentLimit is what a process with one open VM may take, in bytes.
const residentLimit = 30 << 20
