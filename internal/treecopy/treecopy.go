// Package treecopy copies files between the root of a container and other places as a tar. In a guest the agent's own
// program does it, for images need not have a tar. Paths of a container are resolved inside its root, wherever its
// links lead, and what a tar says stays below the folder it is unpacked in.
package treecopy

// Flag is the first argument of a program with the guest's agent that is to copy; see Main.
const Flag = "--strata-copy"

// What there is at a path.
const (
	Absent = "absent"
	Folder = "folder"
	File   = "file"
	Link   = "link"
	Other  = "other"
)
