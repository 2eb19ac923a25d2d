//go:build !unix

package atomicfile

// SyncDir does nothing: folders cannot be synced here, or need not be.
func SyncDir(string) error { return nil }
