// Package volume has what containers share with their host and keep beyond their life: the mounts that a user asks for,
// in docker's words, and volumes with a name, which are folders in a state directory.
package volume
