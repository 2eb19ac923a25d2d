package standin

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// BuildDLLs compiles the libraries into dir.
func BuildDLLs(ctx context.Context, dir string) error {
	src, err := os.MkdirTemp("", "strata-standin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(src)
	if err := os.CopyFS(src, sources); err != nil {
		return err
	}
	for name, files := range libraries {
		args := []string{"-shared", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-o", filepath.Join(dir, name+".dll")}
		for _, f := range files {
			args = append(args, filepath.Join(src, "c", f))
		}
		cmd := exec.CommandContext(ctx, Compiler, append(args, "-lws2_32", "-lole32", "-luser32", "-ladvapi32")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s.dll: %w\n%s", name, err, out)
		}
	}
	return nil
}
