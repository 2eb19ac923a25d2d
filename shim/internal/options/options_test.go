package options

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// pack is a message as containerd hands it over.
func pack(t *testing.T, message any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(message)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestRead: every setting, in a file and in the text itself, and nothing where nothing is said.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	kernel, agent := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "init")
	file := filepath.Join(dir, "shim.toml")
	text := "kernel = '" + kernel + "'\nkernel_release = '6.1.0'\nmodules = '" + dir + "'\ninit = '" + agent + "'\n" +
		"memory = 1024 # MiB\ncpus = 3\naccel = 'tcg'\ntemplate = false\ndebug = true\n"
	for name, b := range map[string]string{kernel: "", agent: "", file: text} {
		if err := os.WriteFile(name, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	memory, cpus, template := 1024, 3, false
	all := Options{Kernel: kernel, Release: "6.1.0", Modules: dir, Init: agent, Accel: "tcg", MemoryMiB: &memory,
		CPUs: &cpus, Template: &template, Debug: true}
	//lint:ignore SA1019 containerd sets them
	containerds := &runcoptions.Options{TaskApiAddress: "unix:///s", TaskApiVersion: 3}
	for name, tt := range map[string]struct {
		given *anypb.Any
		want  Options
	}{
		"none":         {nil, Options{}},
		"a file":       {pack(t, &runtimeoptions.Options{ConfigPath: file}), all},
		"text":         {pack(t, &runtimeoptions.Options{ConfigBody: []byte(text)}), all},
		"empty":        {pack(t, &runtimeoptions.Options{}), Options{}},
		"containerd's": {pack(t, containerds), Options{}},
	} {
		if got, err := Read(tt.given); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tt.want)
		}
	}
}

// TestReadRefused: what is wrong is named, with where it is and what is right.
func TestReadRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(path string) *anypb.Any { return pack(t, &runtimeoptions.Options{ConfigPath: path}) }
	body := func(text string) *anypb.Any { return pack(t, &runtimeoptions.Options{ConfigBody: []byte(text)}) }
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxText+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		given *anypb.Any
		words []string
	}{
		"a key":           {body("cpus = 1\nmemroy = 1"), []string{"configuration, line 2: memroy", "memory"}},
		"a table":         {body("[kernel]\npath = 'x'"), []string{"line 1: kernel"}},
		"a text":          {body("memory = '512'"), []string{"line 1: memory"}},
		"a fraction":      {body("cpus = 1.5"), []string{"line 1: cpus"}},
		"a number":        {body("template = 1"), []string{"line 1: template"}},
		"overflow":        {body("memory = 99999999999999999999"), []string{"line 1"}},
		"twice":           {body("cpus = 1\ncpus = 2"), []string{"line 2", "cpus"}},
		"no memory":       {body("memory = 0"), []string{"memory = 0", "from 1 to 16777216"}},
		"too many":        {body("cpus = 1025"), []string{"cpus = 1025", "from 1 to 1024"}},
		"accel":           {body("accel = 'xen'"), []string{`"xen"`, "auto, kvm or tcg"}},
		"release":         {body("kernel_release = '../x'"), []string{"kernel_release", "../x"}},
		"release above":   {body("kernel_release = '..'"), []string{"kernel_release", ".."}},
		"relative":        {body("kernel = 'vmlinuz'"), []string{"kernel", "absolute"}},
		"gone":            {body("init = '/none/such'"), []string{"init", "/none/such", "that is there"}},
		"a folder":        {body("kernel = '" + dir + "'"), []string{"kernel", "is no file"}},
		"no folder":       {body("modules = '" + big + "'"), []string{"modules", "is no folder"}},
		"no TOML":         {body("memory: 512"), []string{"line 1"}},
		"no UTF-8":        {body("kernel = '\xff'"), []string{"line 1"}},
		"too long":        {body(strings.Repeat(" ", maxText+1)), []string{"larger than"}},
		"file too long":   {file(big), []string{big, "too large"}},
		"no file":         {file("/none/such"), []string{"ConfigPath", "/none/such"}},
		"a device":        {file("/dev/zero"), []string{"/dev/zero", "regular"}},
		"a relative file": {file("x.toml"), []string{`"x.toml"`, "absolute"}},
		"both": {pack(t, &runtimeoptions.Options{ConfigPath: big, ConfigBody: []byte("cpus = 1")}),
			[]string{"ConfigPath and ConfigBody", "give one"}},
		"a type": {pack(t, &runtimeoptions.Options{TypeUrl: "x.v1.Options"}), []string{"TypeUrl", "x.v1"}},
		"runc's": {pack(t, &runcoptions.Options{SystemdCgroup: true}),
			[]string{`"containerd.runc.v1.Options"`, "remove"}},
		"another type": {&anypb.Any{TypeUrl: "x.v1.Options"}, []string{`"x.v1.Options"`, "another runtime's"}},
		"no type":      {&anypb.Any{Value: []byte{1}}, []string{"remove"}},
		"a torn message": {&anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{1}},
			[]string{"runtime options"}},
	} {
		got, err := Read(tt.given)
		if !errdefs.IsInvalidArgument(err) || !reflect.DeepEqual(got, Options{}) {
			t.Errorf("%s: %+v, %v, want an error", name, got, err)
			continue
		}
		for _, w := range tt.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: want an error with %q: %v", name, w, err)
			}
		}
	}
}

// TestKept: of what containerd says when it starts a shim its options are kept, and nothing else.
func TestKept(t *testing.T) {
	bundle := t.TempDir()
	params := &bootapi.BootstrapParams{}
	if err := params.AddExtension(&anypb.Any{TypeUrl: "x.v1.Novel"}); err != nil {
		t.Fatal(err)
	}
	keep := func(want string) {
		t.Helper()
		if err := Keep(bundle, params); err != nil {
			t.Fatal(err)
		}
		if a, err := Kept(bundle); err != nil || a.GetTypeUrl() != want {
			t.Errorf("kept are %v, %v, want those of type %q", a, err, want)
		}
	}
	keep("")
	if err := params.AddExtension(pack(t, &runtimeoptions.Options{ConfigPath: "/x"})); err != nil {
		t.Fatal(err)
	}
	keep("runtimeoptions.v1.Options")
	if err := os.WriteFile(filepath.Join(bundle, keptFile), []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err := Kept(bundle); err == nil {
		t.Errorf("a torn file: %v, want an error", a)
	}
}
