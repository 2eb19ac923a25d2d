package hostpath

import "testing"

func TestIdentity(t *testing.T) {
	for _, same := range [][]string{
		{`C:\Layers\Top`, `c:\layers\top\`, `C:/layers/./top`, `C:\layers\x\..\top`},
		{`\\?\C:\a`, `\\?\c:\A\`, `C:\a`, `//?/c:/a`},
		{`\\server\share\a`, `\\SERVER\share\a\`},
		{"/a/b", "/a/./b/", "/a//b"},
	} {
		for _, p := range same[1:] {
			if Identity(p) != Identity(same[0]) {
				t.Errorf("Identity(%q) = %q, want that of %q: %q", p, Identity(p), same[0], Identity(same[0]))
			}
		}
	}
	for _, differ := range [][2]string{
		{"/a/B", "/a/b"}, {`C:\a`, `D:\a`}, {`\\?\UNC\s\a`, `\\s\a`}, {`\\s\a`, `C:\s\a`}, {"/a", "/a/b"}, {"", "/"},
	} {
		if Identity(differ[0]) == Identity(differ[1]) {
			t.Errorf("Identity(%q) = Identity(%q) = %q", differ[0], differ[1], Identity(differ[0]))
		}
	}
}

func TestNotLocal(t *testing.T) {
	for p, want := range map[string]string{
		`C:\l`: "", `\\?\C:\l`: "", `//?/c:/l`: "", `\\?\Volume{1}\l`: "", "/l": "", "//l": "", "": "",
		`\\.\PHYSICALDRIVE1`: "a device", `\\?\PHYSICALDRIVE1`: "a device", `\\?\GLOBALROOT\Device\x`: "a device",
		`\\server\share\l`: "on a network share", `\\?\UNC\server\share`: "on a network share",
		`//?/unc/s/l`: "on a network share",
	} {
		if got := NotLocal(p); got != want {
			t.Errorf("NotLocal(%q) = %q, want %q", p, got, want)
		}
	}
}

func TestParts(t *testing.T) {
	for _, c := range []struct {
		in         string
		abs        bool
		join, base string
	}{
		{`C:\l\a`, true, `C:\l\a\x`, "a"},
		{`C:\l\a\`, true, `C:\l\a\x`, "a"},
		{`C:a`, false, `C:a\x`, "C:a"},
		{`\\?\Volume{1}\`, true, `\\?\Volume{1}\x`, "Volume{1}"},
		{"/l/a", true, "/l/a/x", "a"},
		{"/l/a/", true, "/l/a/x", "a"},
		{"l", false, "l/x", "l"},
		{`/l/a\b`, true, `/l/a\b/x`, `a\b`},
	} {
		if got := IsAbs(c.in); got != c.abs {
			t.Errorf("IsAbs(%q) = %t", c.in, got)
		}
		if got := Join(c.in, "x"); got != c.join {
			t.Errorf("Join(%q) = %q, want %q", c.in, got, c.join)
		}
		if got := Base(c.in); got != c.base {
			t.Errorf("Base(%q) = %q, want %q", c.in, got, c.base)
		}
	}
	if Ext(`C:\a\Layer.VHD`) != ".vhd" {
		t.Error("Ext does not fold case")
	}
}
