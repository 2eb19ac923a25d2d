package pod

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/shim/internal/options"
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

// TestVM: what VM it is. Options count before the environment.
func TestVM(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		environment string
		option      *bool
		want        bool
	}{{"", nil, false}, {"1", nil, true}, {"1", &no, false}, {"0", &yes, true}, {"", &yes, true},
		{"much", &no, false}} {
		t.Setenv(TemplateEnv, tt.environment)
		v, err := Options{Dir: "/v", Runtime: options.Options{Template: tt.option}}.vm()
		if err != nil || v.Template != tt.want {
			t.Errorf("%q in the environment, %v as an option: %v, %v", tt.environment, tt.option, v.Template, err)
		}
	}
	t.Setenv(TemplateEnv, "much")
	if _, err := (Options{Dir: "/v"}).vm(); err == nil || !strings.Contains(err.Error(), TemplateEnv) {
		t.Errorf("%v, want an error that names the variable", err)
	}
	t.Setenv(TemplateEnv, "")
	v, err := Options{Dir: "/v/" + strings.Repeat("a", 100), MemoryMiB: 7, CPUs: 3, Namespace: "/n",
		Runtime: options.Options{Kernel: "/k", Release: "6", Modules: "/m", Init: "/i", Accel: "tcg"}}.vm()
	b := v.Boot
	if err != nil || len(v.Name) != maxName || v.MemoryMiB != 7 || v.CPUs != 3 || v.Namespace != "/n" ||
		v.Accel != "tcg" || b.Kernel != "/k" || b.Release != "6" || b.ModulesDir != "/m" || b.InitPath != "/i" {
		t.Errorf("%+v, %v", v, err)
	}
}
