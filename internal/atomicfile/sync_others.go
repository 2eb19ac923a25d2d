//go:build !unix

package atomicfile

// SyncDir does nothing: directories cannot, or need not, be synced here.
func SyncDir(string) error { return nil }
