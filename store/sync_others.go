//go:build !unix

package store

// syncDir does nothing: folders need not be synced here.
func syncDir(string) error { return nil }
