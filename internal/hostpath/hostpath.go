// Package hostpath manipulates Windows and Unix paths lexically, on any system. A path is a Windows path if it begins
// with a drive letter and a colon or with two backslashes.
package hostpath

import (
	"path"
	"strings"
)

// IsWindows reports whether p is a Windows path.
func IsWindows(p string) bool {
	if strings.HasPrefix(p, `\\`) || strings.HasPrefix(p, "//?/") {
		return true
	}
	return len(p) >= 2 && p[1] == ':' && (p[0]|0x20) >= 'a' && (p[0]|0x20) <= 'z'
}

// IsAbs reports whether p is absolute, by the rules of its kind.
func IsAbs(p string) bool {
	if !IsWindows(p) {
		return path.IsAbs(p)
	}
	return p[1] != ':' || len(p) >= 3 && (p[2] == '\\' || p[2] == '/')
}

// Identity returns a canonical form of a path, for comparison. For Windows paths it normalizes case, slash direction,
// dots, trailing separators and the long-path prefix before a drive; for others only dots and trailing separators. It
// does not resolve links.
func Identity(p string) string {
	if p == "" {
		return ""
	}
	if !IsWindows(p) {
		return path.Clean(p)
	}
	s := strings.ToLower(strings.ReplaceAll(p, `\`, "/"))
	if rest, long := strings.CutPrefix(s, "//?/"); long && IsWindows(rest) {
		s = rest
	}
	root := ""
	if strings.HasPrefix(s, "//") {
		root, s = "/", s[1:] // path.Clean folds the two slashes into one
	}
	return root + path.Clean(s)
}

// NotLocal returns why a Windows path is not on a local volume, "a device" or "on a network share", and "" for all
// other paths.
func NotLocal(p string) string {
	s := strings.ToLower(strings.ReplaceAll(p, "/", `\`))
	rest, literal := strings.CutPrefix(s, `\\?\`)
	switch {
	case !IsWindows(p), !strings.HasPrefix(s, `\\`), literal && (IsWindows(rest) || strings.HasPrefix(rest, "volume{")):
		return ""
	case literal && !strings.HasPrefix(rest, `unc\`), strings.HasPrefix(s, `\\.\`):
		return "a device"
	}
	return "on a network share"
}

// Join appends a file name to a directory, with the separator that the directory's path uses.
func Join(folder, name string) string {
	sep := "/"
	if IsWindows(folder) {
		sep = `\`
	}
	return strings.TrimRight(folder, `/`+sep) + sep + name
}

// Base returns the last component of p.
func Base(p string) string {
	if IsWindows(p) {
		p = strings.ReplaceAll(p, `\`, "/")
	}
	return path.Base(p)
}

// Ext returns the extension of p in lower case, with its dot.
func Ext(p string) string { return strings.ToLower(path.Ext(Base(p))) }
