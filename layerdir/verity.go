package layerdir

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/regfile"
)

// VerityFileName returns the name of the record of a layer's hash tree, next to the layer file.
func (f Format) VerityFileName() string { return f.FileName() + veritySuffix }

const veritySuffix = ".verity.json"

// ReadVerity reads the record of the hash tree of the layer in dir. If there is none, the error matches
// fs.ErrNotExist. The record is only as trustworthy as the folder: if the folder is not trusted, get the root digest
// from elsewhere.
func ReadVerity(dir string, f Format) (verity.Info, error) {
	return ReadVerityOf(filepath.Join(dir, f.FileName()))
}

// maxVerityRecord bounds the size of the record of a hash tree, which has a few hundred bytes.
const maxVerityRecord = 64 << 10

// ReadVerityOf is ReadVerity for the image file with the given path.
func ReadVerityOf(image string) (verity.Info, error) {
	var info verity.Info
	path := image + veritySuffix
	b, err := regfile.Read(path, maxVerityRecord)
	if err != nil {
		return info, fmt.Errorf("read the verity record: %w", err)
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("read the verity record %s: %w", path, err)
	}
	if _, err := hex.DecodeString(info.RootDigest); err != nil || info.RootDigest == "" || info.DataBytes <= 0 {
		return info, fmt.Errorf("read the verity record %s: it holds no root digest and size: import the layer again", path)
	}
	return info, nil
}

// writeVerity writes the record of a layer that is about to be committed, or removes that of its predecessor.
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
