// Package e2e tries the library as a whole on real parts: VMs under QEMU, this Linux system itself, user
// namespaces; and measures it next to other programs.
package e2e
