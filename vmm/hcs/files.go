package hcs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/atomicfile"
)

// hostFiles is the file system of the host.
type hostFiles struct{}

func (hostFiles) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// CopyFile copies to a temporary name first, so that dst is either complete or does not exist.
func (hostFiles) CopyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	out, err := atomicfile.Create(dst, atomicfile.Options{})
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy %s: %w", src, errors.Join(err, out.Abandon()))
	}
	return out.Commit()
}
