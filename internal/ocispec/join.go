package ocispec

import "strings"

// joins begins the path of a namespace that is another container's of the same machine, whose id follows.
const joins = "container:"

// JoinPath is the path of a namespace in a document that a machine's agent takes for that of another container there.
func JoinPath(id string) string { return joins + id }

// Joined returns the id in a path of JoinPath.
func Joined(path string) (id string, ok bool) { return strings.CutPrefix(path, joins) }
