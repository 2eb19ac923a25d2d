package treecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Limits of a copy: the length of a path in bytes, and the number of entries.
const (
	maxPath    = 4096
	maxEntries = 10_000_000
)

// Pack writes the file or tree at name in root as a tar, named as in it. If as is ".", the entries are the contents of
// the directory. Sockets are left out, because tar has none.
func Pack(w io.Writer, root *os.Root, name, as string) error {
	p := packer{w: tar.NewWriter(w), root: root}
	if err := p.add(name, as); err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	w    *tar.Writer
	root *os.Root
	n    int
}

func (p *packer) add(name, as string) error {
	if p.n++; p.n > maxEntries || len(as) > maxPath {
		return fmt.Errorf("copy %q: it has more than %d files, or paths of more than %d bytes", name, maxEntries, maxPath)
	}
	fi, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	switch {
	case fi.IsDir():
		return p.addDir(name, as, fi)
	case fi.Mode().IsRegular():
		return p.addFile(name, as)
	case fi.Mode()&fs.ModeSocket != 0:
		return nil
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	return p.header(fi, as, link)
}

func (p *packer) header(fi fs.FileInfo, as, link string) error {
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = as, "", "", tar.FormatPAX
	if fi.IsDir() {
		h.Name += "/"
	}
	return p.w.WriteHeader(h)
}

func (p *packer) addDir(name, as string, fi fs.FileInfo) error {
	if err := p.header(fi, as, ""); err != nil {
		return err
	}
	d, err := p.root.OpenFile(name, os.O_RDONLY|onlyFolder, 0) // it may have become a FIFO
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(1000)
		for _, e := range entries {
			err := p.add(path.Join(name, e.Name()), path.Join(as, e.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *packer) addFile(name, as string) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|nonBlock, 0) // it may have become a FIFO
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("copy %q: it has changed meanwhile", name)
	}
	if err := p.header(fi, as, ""); err != nil {
		return err
	}
	n, err := io.Copy(p.w, io.LimitReader(f, fi.Size()))
	for zeroes := make([]byte, 64<<10); err == nil && n < fi.Size(); { // truncated meanwhile: pad
		var more int
		more, err = p.w.Write(zeroes[:min(int64(len(zeroes)), fi.Size()-n)])
		n += int64(more)
	}
	return err
}

// clean returns the clean path of an entry relative to the directory in which it is unpacked.
func clean(name string) (string, error) {
	c := path.Clean(name)
	if name == "" || len(name) > maxPath || path.IsAbs(c) || c == ".." || strings.HasPrefix(c, "../") ||
		strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("the tar names %.100q: a path outside of the folder that it is for", name)
	}
	return c, nil
}
