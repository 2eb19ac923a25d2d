// Package network creates the networks of containers in a Linux guest: a network namespace with interfaces of the VM,
// and a file for the container's /etc/resolv.conf.
package network
