package ocispec

import "strings"

// joins is the prefix of a namespace path that refers to another container in the same machine, by its id.
const joins = "container:"

// JoinPath returns a namespace path for a spec by which the guest's agent joins the namespace of another container.
func JoinPath(id string) string { return joins + id }

// Joined returns the id in a path of JoinPath.
func Joined(path string) (id string, ok bool) { return strings.CutPrefix(path, joins) }
