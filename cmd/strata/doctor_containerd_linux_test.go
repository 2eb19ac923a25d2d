package main

import "testing"

func TestStartsShims(t *testing.T) {
	for version, want := range map[string]bool{"v2.3.0": true, "2.4.2": true, "v2.3.0-rc.1": true, "v3.0.0": true,
		"v2.2.9": false, "v1.7.29": false, "1.6.20~ds1": false, "": false, "unknown": false} {
		if got := startsShims(version); got != want {
			t.Errorf("version %q: %t", version, got)
		}
	}
}
