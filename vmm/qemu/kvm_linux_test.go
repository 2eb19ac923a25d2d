package qemu

import (
	"os"
	"strings"
	"testing"
)

func TestKVMFlags(t *testing.T) {
	for info, works := range map[string]bool{
		"processor : 0\nflags\t\t: fpu vme vmx ssse3\n": true,
		"processor : 0\nflags\t\t: fpu svm\n":           true,
		"processor : 0\nflags\t\t: fpu vmxoff\n":        false,
		"model name : vmx svm\n":                        false,
		"":                                              false,
	} {
		if err := kvmFlags(info); (err == nil) != works {
			t.Errorf("%q: %v", info, err)
		}
	}
}

func TestKVMFailureIsRemembered(t *testing.T) {
	c, err := Config{Dir: "/x", CacheDir: t.TempDir()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	kvmRemember(c, os.ErrInvalid)
	b, err := os.ReadFile(kvmFile(c))
	if err != nil || string(b) != bootID() || len(b) == 0 {
		t.Fatalf("%q %v", b, err)
	}
	if kvmUsable() != nil {
		t.Skip("KVM is not usable on this host in the first place; there is nothing to forget")
	}
	if err := kvmWorth(c); err == nil || !strings.Contains(err.Error(), kvmFile(c)) {
		t.Errorf("KVM is tried again: %v", err)
	}
	if err := os.WriteFile(kvmFile(c), []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := kvmWorth(c); err != nil {
		t.Errorf("KVM is not tried after the host booted again: %v", err)
	}
}
