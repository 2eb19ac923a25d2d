// Package vhd reads and writes the virtual disk formats of layer folders, as far as layers need them:
// the footer of a fixed VHD (layer.vhd: a file system, then 512 bytes), and the header of a VHDX
// (sandbox.vhdx), which is only probed. The formats are those of the "Virtual Hard Disk Image Format
// Specification" and of MS-VHDX. Nothing here opens a file.
//
// Libraries are not used: go-winio's package vhd needs Windows's virtdisk.dll, and hcsshim's tar2ext4 only writes
// footers.
package vhd
