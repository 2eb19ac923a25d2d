package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSearchDomains(t *testing.T) {
	for text, want := range map[string][]string{
		"nameserver 10.0.0.1\n":                            nil,
		"search a.example b.example\nnameserver 1.1.1.1\n": {"a.example", "b.example"},
		"domain a.example\nsearch b.example\n":             {"b.example"}, // the last one counts
		"search a/b c.example\n":                           {"c.example"},
		"search a b c d e f g h\n":                         {"a", "b", "c", "d", "e", "f"},
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := searchDomains(path); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := searchDomains(filepath.Join(t.TempDir(), "none")); got != nil {
		t.Errorf("no file: %q", got)
	}
}

func TestFreeSubnet(t *testing.T) {
	for used, want := range map[string]string{
		"192.0.2.7/24":  "invalid Prefix", // the usual one
		"10.0.2.15/24":  "10.0.3.0/24",
		"10.0.2.2/32":   "10.0.3.0/24",
		"10.0.0.9/22":   "10.0.4.0/24",
		"10.1.2.3/8":    "172.31.200.0/24",
		"0.0.0.0/0":     "invalid Prefix", // there is no other
		"2001:db8::/32": "invalid Prefix",
	} {
		if got := freeSubnet([]netip.Prefix{netip.MustParsePrefix(used)}).String(); got != want {
			t.Errorf("beside %s: %s, want %s", used, got, want)
		}
	}
}
