package winetest

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/winetest/standin"
)

// TestWineStrata runs strata.exe itself.
func TestWineStrata(t *testing.T) {
	prefix := start(t)
	server, err := standin.Listen(standin.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	exe := filepath.Join(t.TempDir(), "strata.exe")
	build(t, "build", "-o", exe, module+"/cmd/strata")
	for _, tt := range []struct {
		args []string
		want []string // in the output
		ok   bool
	}{
		{[]string{"--help"}, []string{"strata", "mount", "unmount"}, true},
		// Wine has no services of Hyper-V: doctor must say so, and find all the rest.
		{[]string{"doctor"}, []string{"10.0." + Build, "vmcompute.dll", "computestorage.dll", "Administrators", "vmms", "Enable-WindowsOptionalFeature"}, false},
		{[]string{"no-such-command"}, []string{"no-such-command"}, false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		cmd := prefix.Command(ctx, exe, tt.args...)
		cmd.Env = append(cmd.Env, server.Env())
		out, err := cmd.CombinedOutput()
		cancel()
		if (err == nil) != tt.ok {
			t.Errorf("strata.exe %s: %v\n%s", strings.Join(tt.args, " "), err, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("strata.exe %s: %q is missing in:\n%s", strings.Join(tt.args, " "), want, out)
			}
		}
	}
}
