package pod

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDir(t *testing.T) {
	t.Setenv(StateEnv, "")
	if dir, err := Dir("k8s.io", "a-1"); dir != "/run/strata/shim/k8s.io/vms/a-1" || err != nil {
		t.Errorf("%s, %v", dir, err)
	}
	t.Setenv(StateEnv, "/srv/vms")
	if dir, err := Dir("default", "a"); dir != "/srv/vms/default/vms/a" || err != nil {
		t.Errorf("%s, %v", dir, err)
	}
	for _, names := range [][2]string{{"..", "a"}, {"default", ".."}, {"default", "a/../.."}, {"", "a"}, {"default", ""},
		{"default", strings.Repeat("a", 200)}} {
		if dir, err := Dir(names[0], names[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %s, %v, want an error", names, dir, err)
		}
	}
}

// TestParentGone tells a folder whose parent another shim has removed from everything else.
func TestParentGone(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("state directory: %w", os.Mkdir(dir+"/ns/a", 0o700)), true},
		{os.Mkdir(dir, 0o700), false},
		{os.Remove(dir + "/ns"), false},
		{nil, false},
	} {
		if got := parentGone(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}
