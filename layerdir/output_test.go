package layerdir_test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stratavm/strata/layerdir"
)

// childDir names the folder that a copy of the test program makes a layer in, of its standard input.
const childDir = "STRATA_TEST_LAYERDIR"

// TestKilledConvert: what a process leaves that is killed while it makes a layer is gone with the next
// layer that is made beside it. What one that lives is at stays.
func TestKilledConvert(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		if _, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: layerdir.EROFS, Tar: os.Stdin, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		return
	}
	var whole bytes.Buffer
	w := tar.NewWriter(&whole)
	for _, name := range []string{"a", "b"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	// half starts a child and gives it half of the tar: when it has read that it is at work.
	half := func(name string) (child *exec.Cmd, rest func() error) {
		t.Helper()
		child = exec.Command(os.Args[0], "-test.run=^TestKilledConvert$")
		child.Env = append(os.Environ(), childDir+"="+filepath.Join(parent, name))
		child.Stderr = os.Stderr
		in, err := child.StdinPipe()
		if err == nil {
			err = child.Start()
		}
		if err == nil {
			_, err = in.Write(whole.Bytes()[:whole.Len()/2])
		}
		if err != nil {
			t.Fatal(err)
		}
		return child, func() error {
			if _, err := in.Write(whole.Bytes()[whole.Len()/2:]); err != nil {
				return err
			}
			return in.Close()
		}
	}
	convert := func(name string) {
		t.Helper()
		if _, err := layerdir.Convert(t.Context(),
			layerdir.Options{Format: layerdir.EROFS, Tar: bytes.NewReader(whole.Bytes()),
				Dir: filepath.Join(parent, name)}); err != nil {
			t.Fatal(err)
		}
	}
	there := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}

	killed, _ := half("killed")
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait() // it was killed
	if names := there(); len(names) != 1 {
		t.Fatalf("the killed process left %q: nothing is tested", names)
	}
	living, rest := half("living")
	convert("layer")
	if names := there(); len(names) != 2 {
		t.Errorf("with one process that lives there is %q", names)
	}
	if err := rest(); err != nil {
		t.Error(err)
	}
	if err := living.Wait(); err != nil {
		t.Errorf("the process that lived: %v", err)
	}
	if names := there(); !slices.Equal(names, []string{"layer", "living"}) {
		t.Errorf("at the end there is %q", names)
	}
}
