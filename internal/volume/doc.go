// Package volume has the mounts of containers, in docker's syntax, and named volumes, which are directories in a state
// directory.
package volume
