package strata_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// TestImageProcess: a program has of the image what nothing else is said of.
func TestImageProcess(t *testing.T) {
	kept, err := strata.KeepImage("app", "sha256:0", image.Config{Env: []string{"A=1", "B=1", "=x", "nothing"},
		WorkingDir: "work", User: "app:staff", Cmd: []string{"serve"}, StopSignal: "SIGINT"})
	if err != nil {
		t.Fatal(err)
	}
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for name, tt := range map[string]struct {
		kept     *layers.Image
		in, want vmm.ProcessSpec
	}{
		"nothing said": {kept, vmm.ProcessSpec{Args: []string{"id"}}, vmm.ProcessSpec{Args: []string{"id"},
			Env: []string{path, "A=1", "B=1"}, Dir: "/work", User: "app:staff", MakeDir: true}},
		"all said": {kept, vmm.ProcessSpec{Env: []string{"B=2", "PATH=/x"}, Dir: "/", User: "0"},
			vmm.ProcessSpec{Env: []string{"PATH=/x", "A=1", "B=2"}, Dir: "/", User: "0"}},
		"nothing kept": {nil, vmm.ProcessSpec{}, vmm.ProcessSpec{Env: []string{path}, Dir: "/", MakeDir: true}},
	} {
		got, err := strata.ImageProcess(tt.kept, tt.in)
		if d := cmp.Diff(tt.want, got); d != "" || err != nil {
			t.Errorf("%s: %v, %s", name, err, d)
		}
	}
	if _, err := strata.ImageProcess(&layers.Image{Config: json.RawMessage(`{"env":7}`)}, vmm.ProcessSpec{}); err == nil {
		t.Error("what is no configuration is taken")
	}
	if c, err := strata.KeptConfig(kept); err != nil || c.StopSignal != "SIGINT" || c.Cmd[0] != "serve" {
		t.Errorf("kept: %+v, %v", c, err)
	}
}
