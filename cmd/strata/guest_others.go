//go:build !linux

package main

// guest: the agent is for Linux guests.
func guestMain() (code int, handled bool) { return 0, false }
