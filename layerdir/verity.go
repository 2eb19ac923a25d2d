package layerdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/verity"
)

// VerityFileName is the name of the record of a hash tree beside its layer.
func (f Format) VerityFileName() string { return f.FileName() + ".verity.json" }

// ReadVerity reads the record of the hash tree of the layer in dir. Without one the error matches
// fs.ErrNotExist. The record is as trustworthy as the folder: who does not trust it has to know the
// root digest from elsewhere.
func ReadVerity(dir string, f Format) (verity.Info, error) {
	var info verity.Info
	path := filepath.Join(dir, f.VerityFileName())
	b, err := os.ReadFile(path)
	if err != nil {
		return info, fmt.Errorf("read the verity record: %w", err)
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("read the verity record %s: %w", path, err)
	}
	return info, nil
}

// writeVerity writes the record of a layer that is about to appear, or removes that of its
// predecessor.
func writeVerity(dir string, f Format, info *verity.Info) error {
	if info == nil {
		if err := os.Remove(filepath.Join(dir, f.VerityFileName())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return writeFile(dir, f.VerityFileName(), append(b, '\n'))
}
