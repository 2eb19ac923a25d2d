package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestParse(t *testing.T) {
	abs := func(p string) string { a, _ := filepath.Abs(p); return a }
	for in, want := range map[string]Mount{
		"data:/var/lib/x":          {Type: Named, Source: "data", Target: "/var/lib/x"},
		"/var//lib/x/":             {Type: Named, Target: "/var/lib/x"},
		"./d:/d:ro":                {Type: Bind, Source: abs("d"), Target: "/d", ReadOnly: true},
		"..:/d:rw":                 {Type: Bind, Source: abs(".."), Target: "/d"},
		"a.b-c_1:/a b,c:ro":        {Type: Named, Source: "a.b-c_1", Target: "/a b,c", ReadOnly: true},
		"data:/d:nocopy,ro":        {Type: Named, Source: "data", Target: "/d", ReadOnly: true, NoCopy: true},
		"./a, b=c 'x' \"y\"\nü:/d": {Type: Bind, Source: abs("a, b=c 'x' \"y\"\nü"), Target: "/d"},
	} {
		if got, err := ParseVolume(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	memory := []string{"nosuid", "nodev", "noexec"}
	for in, want := range map[string]Mount{
		"type=bind,source=./a:b,target=/d,readonly": {Type: Bind, Source: abs("a:b"), Target: "/d", ReadOnly: true},
		"type=bind,src=/x,dst=/d,ro=false":          {Type: Bind, Source: abs("/x"), Target: "/d"},
		`type=bind,"source=/a,b",destination=/d`:    {Type: Bind, Source: abs("/a,b"), Target: "/d"},
		"source=data,target=/d,volume-nocopy":       {Type: Named, Source: "data", Target: "/d", NoCopy: true},
		"type=volume,target=/d":                     {Type: Named, Target: "/d"},
		"type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=755": {Type: Memory, Target: "/t",
			Options: slices.Concat(memory, []string{"size=67108864", "mode=755"})},
	} {
		if got, err := ParseMount(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseMemory(t *testing.T) {
	for in, want := range map[string]string{"/run": "nosuid,nodev,noexec",
		"/run:size=1m,exec,mode=755": "nosuid,nodev,size=1048576,mode=755"} {
		m, err := ParseMemory(in)
		if err != nil || m.Target != "/run" || m.Type != Memory || strings.Join(m.Options, ",") != want {
			t.Errorf("%q: %+v, %v", in, m, err)
		}
	}
	for _, in := range []string{"run", "/run:size=x", "/", ":size=1m", "/proc"} {
		if m, err := ParseMemory(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %+v, %v", in, m, err)
		}
	}
}

func TestParseRefused(t *testing.T) {
	for _, in := range []string{"", ":", "a:", ":/d", "a:b", "a:/", "a:/..", "a:/x/../..", "a:/proc", "a:/proc/x",
		"a:/sys",
		"a:/dev", "a:/x\ny", "-a:/d", "a:/d:z", "./a:/d:nocopy", "a:/b:/c:ro", "/a:./b", "a:/x\x00"} {
		if m, err := ParseVolume(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("--volume %q: %+v, %v", in, m, err)
		}
	}
	for _, in := range []string{"", "type=bind,target=/d", "type=nfs,target=/d", "type=tmpfs,source=/x,target=/d",
		"type=bind,source=/x", "type=bind,source=/x,target=d", "type=bind,source=/x,target=/d,ro=perhaps", "target",
		"type=bind,source=/x,target=/d\ntype=bind", `type=bind,"source=/x`, "type=bind,source=/x,target=/d,tmpfs-size=1m",
		"type=tmpfs,target=/d,tmpfs-size=-1", "type=tmpfs,target=/d,tmpfs-size=m", "type=tmpfs,target=/d,tmpfs-mode=9",
		"type=bind,source=/x,target=/d,bind-propagation=shared", "source=a/b,target=/d"} {
		if m, err := ParseMount(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("--mount %q: %+v, %v", in, m, err)
		}
	}
}

func TestCheck(t *testing.T) {
	base := t.TempDir()
	state := filepath.Join(base, "state")
	other := filepath.Join(base, "other")
	if err := errors.Join(os.Mkdir(state, 0o700), os.Mkdir(other, 0o700)); err != nil {
		t.Fatal(err)
	}
	bind := func(source, target string) Mount { return Mount{Type: Bind, Source: source, Target: target} }
	if err := Check([]Mount{bind(other, "/a"), bind(other, "/b"), {Type: Named, Source: "n", Target: "/c"}},
		state); err != nil {
		t.Error(err)
	}
	if err := Check([]Mount{bind(other, "/a"), {Type: Memory, Target: "/a"}}, state); !errors.Is(err, ErrInvalid) {
		t.Errorf("two on one place: %v", err)
	}
	if err := Check([]Mount{bind(filepath.Join(base, "none"), "/a")}, state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a source that is missing: %v", err)
	}
	for name, ok := range map[string]bool{"containers": false, "run/x": false, "store/chains": false, "vms/host/fs": false,
		"volumes/n/data": true, "mine": true} {
		inside := filepath.Join(state, filepath.FromSlash(name))
		if err := os.MkdirAll(inside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Check([]Mount{bind(inside, "/a")}, state); errors.Is(err, ErrInvalid) == ok || ok && err != nil {
			t.Errorf("%s of the state directory: %v", name, err)
		}
	}
	above := []string{base, state}
	if runtime.GOOS != "windows" {
		link := filepath.Join(base, "other", "link")
		if err := os.Symlink(base, link); err != nil {
			t.Fatal(err)
		}
		above = append(above, link, "/")
	}
	for _, source := range above {
		for _, dir := range []string{state, filepath.Join(state, "not", "there")} {
			if source == state && dir != state {
				continue
			}
			if err := Check([]Mount{bind(source, "/a")}, dir); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s contains %s: %v", source, dir, err)
			}
		}
	}
}

func TestStore(t *testing.T) {
	alive := map[string]bool{"c1": true}
	s := Store{Dir: filepath.Join(t.TempDir(), "volumes"), Alive: func(c string) bool { return alive[c] }}
	ctx := t.Context()
	if all, err := s.List(); len(all) > 0 || err != nil {
		t.Fatal(all, err)
	}
	info, created, err := s.Create(ctx, "data", map[string]string{"a": "b"})
	if err != nil || !created || info.Labels["a"] != "b" || info.Path != s.DataPath("data") {
		t.Fatalf("%+v, %v, %v", info, created, err)
	}
	if _, created, err = s.Create(ctx, "data", nil); created || err != nil {
		t.Errorf("created twice: %v, %v", created, err)
	}
	if _, empty, err := s.Use(ctx, "data", "c1"); !empty || err != nil {
		t.Errorf("a new volume: empty %v, %v", empty, err)
	}
	if err := os.WriteFile(filepath.Join(info.Path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, empty, err := s.Use(ctx, "data", "gone"); empty || err != nil {
		t.Errorf("a volume with a file: empty %v, %v", empty, err)
	}
	if _, _, err := s.Use(ctx, "second", "gone"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "data"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "by c1") {
		t.Errorf("in use: %v", err)
	}
	if names, err := s.Prune(ctx); err != nil || !slices.Equal(names, []string{"second"}) {
		t.Errorf("pruned %q, %v", names, err)
	}
	alive["c1"] = false // a run that was killed, and taken away since
	if err := s.Remove(ctx, "data"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "-x", ".lock", strings.Repeat("x", 129)} {
		_, _, cerr := s.Create(ctx, name, nil)
		_, _, uerr := s.Use(ctx, name, "c")
		if cerr == nil || uerr == nil || !errors.Is(s.Remove(ctx, name), ErrNotFound) {
			t.Errorf("%q: %v, %v", name, cerr, uerr)
		}
	}
	left, err := os.ReadDir(s.Dir)
	if err != nil || len(left) != 1 { // the lock
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestStoreAtOnce: one volume is made by one of many, and is not removed under one that takes it.
func TestStoreAtOnce(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 16 {
		wg.Go(func() {
			_, created, err := s.Create(t.Context(), "v", nil)
			if err != nil {
				t.Error(err)
			}
			if _, _, err := s.Use(t.Context(), "v", "c"); err != nil {
				t.Error(err)
			}
			if err := s.Remove(t.Context(), "v"); !errors.Is(err, ErrInUse) {
				t.Errorf("removed under its container: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if created {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("made %d times", made)
	}
}
