package wclayer

import (
	"fmt"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
)

// maxPath is the longest path the platform takes, in UTF-16 units.
const maxPath = 32767

// checkPath returns an error for paths that the platform would misinterpret: it truncates strings at a NUL, and
// resolves relative paths against another directory than the caller's.
func checkPath(what, p string) error {
	switch {
	case p == "":
		return fmt.Errorf("%w: %s is empty", ErrInvalid, what)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%w: %s %q has a NUL character", ErrInvalid, what, p)
	case len(p) > maxPath:
		return fmt.Errorf("%w: %s has %d characters, Windows takes %d", ErrInvalid, what, len(p), maxPath)
	case !hostpath.IsWindows(p) || !hostpath.IsAbs(p):
		return fmt.Errorf("%w: %s %q: give an absolute Windows path such as C:\\layers\\base", ErrInvalid, what, p)
	}
	return nil
}

// checkFolder is checkPath for layer folders, which must be on a local volume: the layer filter does not support
// network shares.
func checkFolder(what, p string) error {
	if err := checkPath(what, p); err != nil {
		return err
	}
	if why := hostpath.NotLocal(p); why != "" {
		return fmt.Errorf("%w: %s %q is %s: give a folder on a local volume", ErrInvalid, what, p, why)
	}
	return nil
}

// spelled returns a path as it is passed to the platform: with backslashes, without trailing separators, and with the
// long-path prefix if necessary.
func spelled(p string) string {
	s := strings.ReplaceAll(p, "/", `\`)
	if trimmed := strings.TrimRight(s, `\`); len(trimmed) > 2 {
		s = trimmed
	}
	if len(s) >= 260 && !strings.HasPrefix(s, `\\`) {
		s = `\\?\` + s
	}
	return s
}

// volumeRoot returns a volume path without its trailing backslash, which names the volume rather than its root
// directory.
func volumeRoot(p string) string { return strings.TrimRight(p, `\`) }

// checkText returns an error for a string with a NUL, at which the platform would truncate it.
func checkText(what, s string) error {
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("%w: %s %q has a NUL character", ErrInvalid, what, s)
	}
	return nil
}
