// Package test runs containers by a real containerd and ctr, in real VMs. It builds both, the shim and the guest's
// agent; module daemon says which containerd.
package test
