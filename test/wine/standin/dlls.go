package standin

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
)

//go:embed c
var sources embed.FS

// Compiler is the C compiler for Windows on x86-64; Debian has it in gcc-mingw-w64-x86-64.
const Compiler = "x86_64-w64-mingw32-gcc"

var libraries = map[string][]string{
	"vmcompute":        {"vmcompute_layers.c", "vmcompute_systems.c", "wire.c"},
	"computecore":      {"computecore.c", "wire.c"},
	"computestorage":   {"computestorage.c", "wire.c"},
	"cimfs":            {"cimfs.c", "wire.c"},
	"virtdisk":         {"virtdisk.c", "wire.c"},
	"bcryptprimitives": {"bcryptprimitives.c", "wine8.c"},
}

// stamp is a file beside the libraries that says what they were made of.
const stamp = "strata-standin.sum"

// BuildDLLs compiles the libraries into dir, unless they are there already, of the same sources by the same compiler.
func BuildDLLs(ctx context.Context, dir string) error {
	flags := []string{"-shared", "-Os", "-s", "-Wall", "-Wextra", "-Werror"}
	libs := []string{"-lws2_32", "-lole32", "-luser32", "-ladvapi32"}
	version, err := exec.CommandContext(ctx, Compiler, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", Compiler, err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s%q%q%q", version, flags, libs, libraries)
	if err := hashFiles(sum); err != nil {
		return err
	}
	want := fmt.Sprintf("%x\n", sum.Sum(nil))
	if have, err := os.ReadFile(filepath.Join(dir, stamp)); err == nil && string(have) == want {
		return nil
	}
	if err := os.Remove(filepath.Join(dir, stamp)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	src, err := os.MkdirTemp("", "strata-standin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(src)
	if err := os.CopyFS(src, sources); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for name, files := range libraries {
		args := append(slices.Clone(flags), "-o", filepath.Join(dir, name+".dll"))
		for _, f := range files {
			args = append(args, filepath.Join(src, "c", f))
		}
		g.Go(func() error {
			if out, err := exec.CommandContext(ctx, Compiler, append(args, libs...)...).CombinedOutput(); err != nil {
				return fmt.Errorf("compile %s.dll: %w\n%s", name, err, out)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, stamp), []byte(want), 0o600)
}

// hashFiles adds the sources to a digest.
func hashFiles(sum io.Writer) error {
	return fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := sources.ReadFile(path)
		fmt.Fprintf(sum, "%q%q", path, b)
		return err
	})
}
