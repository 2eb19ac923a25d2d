package bootimage

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// program returns an ELF program, at guest path to, followed by its loader and all libraries that it depends on,
// directly or indirectly.
func program(from, to string) ([]file, error) {
	out := []file{{name: to, mode: 0o755}}
	interp, needed, err := links(from)
	if err != nil {
		return nil, err
	}
	out[0].source = from
	if interp == "" && len(needed) == 0 {
		return out, nil
	}
	if interp != "" {
		out = append(out, file{name: clean(interp), mode: 0o755, source: interp})
	}
	dirs := libraryDirs(from)
	seen := map[string]bool{filepath.Base(interp): true}
	for len(needed) > 0 {
		lib := needed[0]
		needed = needed[1:]
		if seen[lib] {
			continue
		}
		seen[lib] = true
		path, err := findLibrary(lib, dirs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		_, more, err := links(path)
		if err != nil {
			return nil, err
		}
		needed = append(needed, more...)
		out = append(out, file{name: clean(path), mode: 0o755, source: path})
	}
	return out, nil
}

func clean(path string) string {
	return strings.TrimPrefix(filepath.ToSlash(filepath.Clean(path)), "/")
}

// links returns the loader and the libraries that an ELF file names.
func links(path string) (interp string, needed []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("%s is no program for Linux: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", nil, fmt.Errorf("%s: reading the name of its loader: %w", path, err)
		}
		interp = strings.TrimRight(string(b), "\x00")
	}
	needed, err = f.ImportedLibraries()
	if err != nil {
		return "", nil, fmt.Errorf("%s: reading the libraries it names: %w", path, err)
	}
	return interp, needed, nil
}

// libraryDirs returns the directories in which the loader looks up libraries, in order: the program's run path, then
// the defaults.
func libraryDirs(program string) []string {
	var dirs []string
	if f, err := elf.Open(program); err == nil {
		for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
			paths, _ := f.DynString(tag) // absent is fine
			for _, p := range paths {
				for _, d := range strings.Split(p, ":") {
					dirs = append(dirs, strings.ReplaceAll(d, "$ORIGIN", filepath.Dir(program)))
				}
			}
		}
		f.Close()
	}
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*"} {
		found, _ := filepath.Glob(pattern) // the pattern is valid
		dirs = append(dirs, found...)
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
}

func findLibrary(name string, dirs []string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, d := range dirs {
		path := filepath.Join(d, name)
		f, err := elf.Open(path)
		if errors.Is(err, fs.ErrNotExist) || err != nil {
			continue // missing, or a linker script
		}
		ok := f.Machine == hostMachine()
		f.Close()
		if ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s is in none of %s: %w", name, strings.Join(dirs, ", "), os.ErrNotExist)
}
