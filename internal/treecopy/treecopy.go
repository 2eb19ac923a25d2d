// Package treecopy copies files to and from the root of a container as a tar stream. In a guest, the agent's program
// does so, because images need not contain tar. Paths of a container are resolved within its root, and entries of a tar
// stay below the directory in which it is unpacked.
package treecopy

// Flag is the first argument by which a program that contains the guest's agent runs Main.
const Flag = "--strata-copy"

// Results of Stat.
const (
	Absent = "absent"
	Folder = "folder"
	File   = "file"
	Link   = "link"
	Other  = "other"
)
