// Package hostpath works on host paths as text, Windows and Unix paths alike, on every system. A
// path is a Windows path when it begins with a drive letter and a colon or with two backslashes.
package hostpath

import (
	"path"
	"strings"
)

// IsWindows reports whether p is spelled as a Windows path.
func IsWindows(p string) bool {
	if strings.HasPrefix(p, `\\`) || strings.HasPrefix(p, "//?/") {
		return true
	}
	return len(p) >= 2 && p[1] == ':' && (p[0]|0x20) >= 'a' && (p[0]|0x20) <= 'z'
}

// IsAbs reports whether p is absolute in its own spelling.
func IsAbs(p string) bool {
	if !IsWindows(p) {
		return path.IsAbs(p)
	}
	return p[1] != ':' || len(p) >= 3 && (p[2] == '\\' || p[2] == '/')
}

// Identity makes two spellings of one path equal. Windows paths compare without regard to case,
// slash direction, dots, trailing separators and the prefix of long paths before a drive; other paths
// only lose dots and trailing separators. Links are to be resolved before.
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

// NotLocal says why a Windows path is none of a file on a volume of its host: "a device" or "on a
// network share". It is empty for all other paths.
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

// Join adds a file name to a folder with the separator that the folder uses.
func Join(folder, name string) string {
	sep := "/"
	if IsWindows(folder) {
		sep = `\`
	}
	return strings.TrimRight(folder, `/`+sep) + sep + name
}

// Base is the last part of p.
func Base(p string) string {
	if IsWindows(p) {
		p = strings.ReplaceAll(p, `\`, "/")
	}
	return path.Base(p)
}

// Ext is the extension of the last part of p, in lower case, with its dot.
func Ext(p string) string { return strings.ToLower(path.Ext(Base(p))) }
