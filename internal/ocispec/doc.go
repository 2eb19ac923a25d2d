// Package ocispec is what Strata knows of the document of a container, as the OCI runtime specification writes it:
// what a container is given where nothing else is said (Default, the same as docker and containerd give), how a
// caller's document is read (Decode) and checked (Check), and which of its fields are honoured (fields.go).
// A document that passes Check has no field that would be ignored: each is honoured or refused by name.
//
// Everything here is data and plain functions, which may be called concurrently, on any host.
package ocispec
