package local_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

func TestMain(m *testing.M) {
	os.Exit(leaktest.Main(m))
}

// program is a layer with a static program that serves as shell.
func program(t *testing.T) []entry {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte(`package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	in, _ := io.ReadAll(os.Stdin)
	name, _ := os.Hostname()
	dir, _ := os.Getwd()
	fmt.Printf("pid=%d uid=%d host=%s dir=%s env=%s in=%s\n", os.Getpid(), os.Getuid(), name, dir, os.Getenv("X"), in)
	fmt.Fprintln(os.Stderr, "err")
	if err := os.WriteFile("/written", in, 0o644); err != nil {
		fmt.Println(err)
	}
	code, _ := strconv.Atoi(os.Args[1])
	os.Exit(code)
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "prog")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return []entry{{Name: "bin/prog", Mode: 0o755, Body: string(b)}, {Name: "proc/"}, {Name: "dev/"}, {Name: "sys/"},
		{Name: "home/"}}
}

func TestExec(t *testing.T) {
	m := machine(t)
	scratch := t.TempDir()
	changes := []vmm.Change{disk(0, layer(t, layerdir.EROFS, program(t)...)), folder(scratch), root(1, "/run/scratch")}
	apply(t, m, changes...)
	var out, stderr bytes.Buffer
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", Args: []string{"prog", "7"},
		Env: []string{"PATH=/bin", "X=y"},
		Dir: "/home", Hostname: "box", Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(t.Context())
	if err != nil || code != 7 {
		t.Errorf("code %d, %v", code, err)
	}
	if got := out.String(); !strings.Contains(got, "uid=0 host=box dir=/home env=y in=hello\n") ||
		strings.Contains(got, fmt.Sprintf("pid=%d ", os.Getpid())) || stderr.String() != "err\n" {
		t.Errorf("output %q, %q", got, stderr.String())
	}
	if b, err := os.ReadFile(filepath.Join(scratch, "upper/written")); err != nil || string(b) != "hello" {
		t.Errorf("on the scratch: %q, %v", b, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs",
		Args: []string{"/none"}}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a program that is not there: %v", err)
	}
	if err := m.DeleteContainerState(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	undo(t, m, changes)
}

// TestFirst: a process that begins a container is its PID 1, begins it anew when it has ended, and is refused while
// anything runs in it, also on behalf of another machine of the same directory.
func TestFirst(t *testing.T) {
	m := hostileRoot(t)
	start := func(m *local.Machine, first bool, script string) (string, vmm.Process, error) {
		var out bytes.Buffer
		p, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", First: first,
			Args: shell(script), Stdout: &out})
		if err != nil || strings.Contains(script, "sleep") {
			return "", p, err
		}
		_, err = p.Wait(t.Context())
		return out.String(), p, errors.Join(err, p.Close())
	}
	for range 2 {
		if out, _, err := start(m, true, "echo $$"); out != "1\n" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	}
	if out, _, err := start(m, false, "echo joined"); out != "joined\n" || err != nil {
		t.Errorf("after the first has ended: %q, %v", out, err)
	}
	for _, first := range []bool{true, false} {
		_, p, err := start(m, first, "exec /bin/busybox sleep 1000")
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []*local.Machine{m, reopenForExec(t, m)} {
			if _, _, err := start(other, true, "true"); !errors.Is(err, vmm.ErrOccupied) {
				t.Errorf("beside another (first: %v): %v", first, err)
			}
		}
		if err := p.Signal(t.Context(), 9); err != nil {
			t.Error(err)
		}
		if code, err := p.Wait(t.Context()); code != 137 || err != nil {
			t.Errorf("code %d, %v", code, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestExecSaysWhatIsWrong tells a program that is not there from one that cannot be executed, in the machine
// itself and in a container.
func TestExecSaysWhatIsWrong(t *testing.T) {
	m := machine(t)
	text := func(name string, mode int64, body string) entry {
		return entry{Name: "x/" + name, Mode: mode, Body: body}
	}
	files := []entry{text("plain", 0o644, "x"), text("script", 0o755, "#!/none\n"), text("text", 0o755, "x"),
		text("cut", 0o755, "\x7fELF"), text("sub/file", 0o644, ""), {Name: "proc/"}, {Name: "dev/"}, {Name: "sys/"}}
	changes := []vmm.Change{disk(0, layer(t, layerdir.EROFS, files...)), folder(t.TempDir()), root(1, "/run/scratch")}
	apply(t, m, changes...)
	here := m.HostPath("/run/c/rootfs")
	for _, tt := range []struct {
		arg string
		is  error
	}{
		{"/x/none", vmm.ErrProgramNotFound}, {"none", vmm.ErrProgramNotFound}, {"/x/plain/none", vmm.ErrProgramNotFound},
		{"/x/script", vmm.ErrProgramNotFound}, // its interpreter
		{"/x/plain", vmm.ErrNotExecutable}, {"plain", vmm.ErrNotExecutable}, {"/x/sub", vmm.ErrNotExecutable},
		{"/x/text", vmm.ErrNotExecutable}, {"/x/cut", vmm.ErrNotExecutable},
	} {
		for _, spec := range []vmm.ProcessSpec{
			{ContainerID: "c", Root: "/run/c/rootfs", Args: []string{tt.arg}, Env: []string{"PATH=/x"}},
			{Args: []string{filepath.Join(here, tt.arg)}},
		} {
			if spec.Root == "" && !filepath.IsAbs(tt.arg) {
				continue // no PATH can name the odd folder of the test
			}
			_, err := m.Exec(t.Context(), spec)
			for _, sentinel := range []error{vmm.ErrProgramNotFound, vmm.ErrNotExecutable} {
				if errors.Is(err, sentinel) != (sentinel == tt.is) {
					t.Errorf("%q in %q: %v, want %v", spec.Args, spec.Root, err, tt.is)
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.arg) {
				t.Errorf("%q is not named in %v", tt.arg, err)
			}
		}
	}
	if err := m.DeleteContainerState(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	undo(t, m, changes)
}
