package test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stratavm/strata/test/imagetest"
)

// otherTar is an image whose program is for a processor of another kind, as ctr imports it.
func otherTar(t *testing.T, name string) []byte {
	t.Helper()
	machine := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_X86_64
	}
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	var program, layer bytes.Buffer
	err := binary.Write(&program, binary.LittleEndian, header)
	program.Write(make([]byte, 4096))
	w := tar.NewWriter(&layer)
	if err == nil {
		err = w.WriteHeader(&tar.Header{Name: "program", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(program.Len())})
	}
	if err == nil {
		_, err = w.Write(program.Bytes())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	blobs := imagetest.Blobs{}
	m := blobs.Image(t, nil, imagetest.Layer{Tar: layer.Bytes()})
	m.Annotations = map[string]string{"io.containerd.image.name": name}
	return blobs.LayoutTar(t, m)
}

// TestOtherPlatform: a program for another processor is an error of the start that says so.
func TestOtherPlatform(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	const other = "docker.io/test/other:latest"
	if err := os.WriteFile(d.dir+"/other.tar", otherTar(t, other), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, "image", "import", "--local", d.dir+"/other.tar")
	r := d.must(t, 1, run("--rm", other, "other", "/program")...)
	if !strings.Contains(r.stderr, "/program") || !strings.Contains(r.stderr, "platform") {
		t.Errorf("%s", r.stderr)
	}
}
