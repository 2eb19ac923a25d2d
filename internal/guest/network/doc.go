// Package network makes the networks of containers in a Linux guest: a namespace with a network interface of the VM in
// it, and a file for the container's /etc/resolv.conf.
package network
