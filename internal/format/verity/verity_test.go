package verity_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/dmverity"

	"github.com/stratavm/strata/internal/format/verity"
)

func file(t testing.TB, blocks int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := make([]byte, blocks*verity.BlockSize)
	rand.NewChaCha8([32]byte{byte(blocks)}).Read(b)
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSameAsReference compares with the tree that hcsshim's tools make, and with veritysetup where it
// is installed.
func TestSameAsReference(t *testing.T) {
	for _, blocks := range []int{1, 2, 127, 128, 129, 255, 256, 257, 128 * 128, 128*128 + 1} {
		f := file(t, blocks)
		size := int64(blocks) * verity.BlockSize
		info, err := verity.Append(t.Context(), f, size)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(whole)) != size+info.TreeBytes {
			t.Errorf("%d blocks: the file has %d bytes, want %d", blocks, len(whole), size+info.TreeBytes)
		}
		tree, err := dmverity.MerkleTree(bytes.NewReader(whole[:size]))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tree, whole[size+verity.BlockSize:]) {
			t.Errorf("%d blocks: the tree differs", blocks)
		}
		ref, err := dmverity.ReadDMVerityInfo(f.Name(), size)
		if err != nil || ref.RootDigest != info.RootDigest || ref.DataBlocks != uint64(blocks) {
			t.Errorf("%d blocks: the reference reads %+v, %v; want %+v", blocks, ref, err, info)
		}
		if got, err := verity.Read(f, size); err != nil || got != info {
			t.Errorf("%d blocks: read %+v, %v; want %+v", blocks, got, err, info)
		}
		if err := verity.Check(t.Context(), f, info); err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		if tool, err := exec.LookPath("veritysetup"); err == nil {
			out, err := exec.Command(tool, "verify", "--hash-offset", strconv.FormatInt(size, 10), f.Name(), f.Name(),
				info.RootDigest).CombinedOutput()
			if err != nil {
				t.Errorf("%d blocks: veritysetup: %v: %s", blocks, err, out)
			}
		}
	}
}

// TestDamage flips one byte in every part: data, super block, each level of the tree.
func TestDamage(t *testing.T) {
	const blocks = 300
	f := file(t, blocks)
	info, err := verity.Append(t.Context(), f, blocks*verity.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, blocks*verity.BlockSize - 1, blocks * verity.BlockSize, (blocks + 1) * verity.BlockSize,
		(blocks + 2) * verity.BlockSize} {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		flip := func() {
			b[0] ^= 1
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		if err := verity.Check(t.Context(), f, info); err == nil {
			t.Errorf("a change of the byte at %d was not noticed", at)
		} else if at != blocks*verity.BlockSize && !errors.Is(err, verity.ErrMismatch) {
			t.Errorf("byte at %d: %v", at, err)
		}
		flip()
	}
	if err := verity.Check(t.Context(), f, info); err != nil {
		t.Errorf("undamaged again: %v", err)
	}
	wrong := info
	wrong.RootDigest = strings.Repeat("0", 64)
	if err := verity.Check(t.Context(), f, wrong); !errors.Is(err, verity.ErrMismatch) {
		t.Errorf("another root digest: %v", err)
	}
}

func TestBadSizes(t *testing.T) {
	f := file(t, 1)
	for _, size := range []int64{-4096, 0, 1, 4095} {
		if _, err := verity.Append(t.Context(), f, size); err == nil {
			t.Errorf("%d bytes were accepted", size)
		}
		if _, err := verity.Read(f, size); err == nil {
			t.Errorf("%d bytes were read", size)
		}
	}
}

func FuzzRead(f *testing.F) {
	data := file(f, 3)
	if _, err := verity.Append(f.Context(), data, 3*verity.BlockSize); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(data.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[3*verity.BlockSize:])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := verity.Read(bytes.NewReader(append(make([]byte, 3*verity.BlockSize), b...)), 3*verity.BlockSize)
		if err == nil && len(info.RootDigest) != 64 {
			t.Errorf("a root digest of %d digits", len(info.RootDigest))
		}
	})
}
