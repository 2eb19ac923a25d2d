//go:build unix

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestBashCompletion runs the script for bash in a bash without the package bash-completion, as the Tab key does.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash here")
	}
	home := completionHome(t)
	script := `source <(strata completion bash)
		COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3)) COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
		COMP_WORDBREAKS=$2
		_strata strata
		printf '%s\n' "${COMPREPLY[@]}"`
	const breaks = " \t\n\"'><=;|&(:"
	for _, tt := range []struct {
		line  string
		words []string // as bash splits them
		want  []string
	}{
		{"strata ex", nil, []string{"exec"}},
		{"strata vm st", nil, []string{"start", "stop"}},
		{"strata vm stop ", nil, []string{"big", "default"}},
		{"strata vm stop b", nil, []string{"big"}},
		{"strata  vm   inspect d", nil, []string{"default"}},
		{"strata vm stop big ", nil, nil},
		{"strata vm start ", nil, []string{"big", "default"}},
		{"strata recover big ", nil, []string{"default"}},
		{"strata exec ", nil, []string{"db", "web"}},
		{"strata exec w", nil, []string{"web"}},
		{"strata exec --vm big ", nil, []string{"cache"}},
		{"strata exec --vm ", nil, []string{"big", "default"}},
		{"strata exec --vm=b", []string{"strata", "exec", "--vm", "=", "b"}, []string{"big"}},
		{"strata exec --vm=", []string{"strata", "exec", "--vm", "="}, []string{"big", "default"}},
		{"strata exec --vm=big ", []string{"strata", "exec", "--vm", "=", "big", ""}, []string{"cache"}},
		{"strata exec -it ", nil, []string{"db", "web"}},
		{"strata exec web ", nil, nil},
		{"strata exec web -- vm ", nil, nil},
		{"strata exec --wor", nil, []string{"--workdir"}},
		{"strata --js", nil, []string{"--json"}},
		{"strata exec --js", nil, []string{"--json"}},
		{"strata unmount web ", nil, []string{"db"}},
		{"strata umount d", nil, []string{"db"}},
		{"strata run ", nil, []string{"app:v1", "app:v2", "base"}},
		{"strata run b", nil, []string{"base"}},
		{"strata run app:", []string{"strata", "run", "app", ":"}, []string{"v1", "v2"}},
		{"strata run app:v1", []string{"strata", "run", "app", ":", "v1"}, []string{"v1"}},
		{"strata run --isolation p", nil, []string{"process"}},
		{"strata run base ", nil, nil},
		{"strata mount new b", nil, []string{"base"}},
		{"strata mount b", nil, nil},
		{"strata image rm app:v1 app:v", []string{"strata", "image", "rm", "app", ":", "v1", "app", ":", "v"},
			[]string{"v2"}},
		{"strata pull ba", nil, []string{"base"}},
		{"strata completion z", nil, []string{"zsh"}},
		{"strata exec $(touch evil) ", nil, nil},
		{"strata --state-dir /nowhere vm stop ", nil, nil},
	} {
		t.Run(tt.line, func(t *testing.T) {
			words := tt.words
			if words == nil {
				words = strings.Fields(tt.line)
				if strings.HasSuffix(tt.line, " ") {
					words = append(words, "")
				}
			}
			cmd := exec.Command(bash, append([]string{"--norc", "--noprofile", "-c", script, "bash", tt.line, breaks},
				words...)...)
			cmd.Dir, cmd.Env = home, completionEnv(t, home)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := strings.Fields(string(out)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if fileExists(filepath.Join(home, "evil")) {
				t.Error("what was typed was evaluated")
			}
		})
	}
}

// TestFishCompletion asks fish itself.
func TestFishCompletion(t *testing.T) {
	fish, err := exec.LookPath("fish")
	if err != nil {
		lacks(t, err, "fish")
	}
	home := completionHome(t)
	for line, want := range map[string][]string{
		"strata vm st": {"start", "stop"}, "strata exec w": {"web"}, "strata vm stop ": {"big", "default"},
		"strata run app:": {"app:v1", "app:v2"}, "strata exec --vm big ca": {"cache"},
	} {
		cmd := exec.Command(fish, "--no-config", "-c", "strata completion fish | source; complete -C "+strconv.Quote(line))
		cmd.Dir, cmd.Env = home, completionEnv(t, home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var got []string
		for l := range strings.Lines(string(out)) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			got = append(got, word)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

// TestZshCompletion runs the script for zsh with its own functions replaced by ones that print what they are given.
func TestZshCompletion(t *testing.T) {
	zsh, err := exec.LookPath("zsh")
	if err != nil {
		lacks(t, err, "zsh")
	}
	home := completionHome(t)
	script := `compdef() { : }
		_describe() { print -rl -- "${(@P)2}" }
		_files() { print files }
		source <(strata completion zsh)
		words=("$@") CURRENT=$#
		_strata`
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{"strata", "exec", "w"}, "web:\n"},
		{[]string{"strata", "run", "app"}, "app\\:v1:\napp\\:v2:\n"},
		{[]string{"strata", "vm", "ls"}, "ls:list the VMs\n"},
		{[]string{"strata", "exec", "web", ""}, "files\n"},
		{[]string{"strata", "exec", "$(touch evil)", ""}, "files\n"},
	} {
		cmd := exec.Command(zsh, append([]string{"-f", "-c", script, "zsh"}, tt.words...)...)
		cmd.Dir, cmd.Env = home, completionEnv(t, home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if string(out) != tt.want {
			t.Errorf("%q: got %q, want %q", tt.words, out, tt.want)
		}
	}
	if fileExists(filepath.Join(home, "evil")) {
		t.Error("what was typed was evaluated")
	}
}

// completionEnv has this program as strata in PATH, and the state directory in home.
func completionEnv(t *testing.T, home string) []string {
	t.Helper()
	path, err := exec.LookPath("strata") // TestMain put it there
	if err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=" + filepath.Dir(path) + ":/usr/bin:/bin", "HOME=" + home,
		"STRATA_STATE_DIR=" + filepath.Join(home, "state"), "GORACE=" + os.Getenv("GORACE")}
}

// completionHome returns a folder with a state directory: the VMs default and big with containers in their ledger, and
// a store with images. One of them has a name that a shell would run.
func completionHome(t *testing.T) string {
	home := t.TempDir()
	state := filepath.Join(home, "state")
	for vm, ids := range map[string][]string{defaultVM: {"web", "db"}, "big": {"cache"}} {
		dir := filepath.Join(state, "vms", vm)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m := vmmtest.New(vm, vmm.Linux, vmmtest.LinuxLimits())
		u, err := uvm.Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return m, nil }, uvm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if _, err := u.Claim(t.Context(), id, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tar := filepath.Join(home, "root.tar")
	if err := os.WriteFile(tar, treetest.Tar(t, treetest.Entry{Name: "one", Body: "1"}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app:v1", "app:v2", "base", "$(touch evil)"} {
		cmd := exec.Command("strata", "import", "--any-root", "--name", name, tar)
		cmd.Env = completionEnv(t, home)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return home
}

// lacks skips a test for want of a program; in CI it fails.
func lacks(t *testing.T, err error, pkg string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skipf("%v: apt-get install %s", err, pkg)
}
