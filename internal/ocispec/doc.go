// Package ocispec handles OCI runtime specs of containers: the defaults (Default, the same as docker's and
// containerd's), decoding (Decode) and checking (Check) of a caller's spec, and the table of supported fields
// (fields.go). No field of a spec is silently ignored: each is supported or refused by name.
//
// All functions may be called concurrently, on any host.
package ocispec
