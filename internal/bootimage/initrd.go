package bootimage

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/stratavm/strata/internal/format/cpio"
)

// file is one entry of the initramfs: content, or a source to read it from.
type file struct {
	name         string // relative
	mode         uint32 // permissions; with a type unless it is a regular file
	major, minor uint32
	source       string
	module       bool // decompress
	content      []byte
}

// skeleton are the directories and devices that must exist before /init mounts anything.
var skeleton = []file{
	{name: "dev/console", mode: cpio.TypeChar | 0o600, major: 5, minor: 1},
	{name: "dev/null", mode: cpio.TypeChar | 0o666, major: 1, minor: 3},
	{name: "dev/kmsg", mode: cpio.TypeChar | 0o600, major: 1, minor: 11},
	{name: "proc", mode: cpio.TypeDir | 0o755},
	{name: "sys", mode: cpio.TypeDir | 0o755},
	{name: "run", mode: cpio.TypeDir | 0o755},
	{name: "tmp", mode: cpio.TypeDir | 0o1777},
	{name: "etc", mode: cpio.TypeDir | 0o755},
}

func hostMachine() elf.Machine {
	switch runtime.GOARCH {
	case "arm64":
		return elf.EM_AARCH64
	default:
		return elf.EM_X86_64
	}
}

// collect returns all files of the initramfs.
func collect(o Options, k kernel) ([]file, error) {
	files := append([]file(nil), skeleton...)
	init, err := program(o.InitPath, "init")
	if err != nil {
		return nil, fmt.Errorf("bootimage: the guest's init: %w", err)
	}
	files = append(files, init...)
	tools, err := o.tools()
	if err != nil {
		return nil, fmt.Errorf("bootimage: %w", err)
	}
	files = append(files, tools...)
	files = append(files, moduleFiles(k.modules)...)
	seen := map[string]bool{}
	var out []file
	for _, f := range files {
		if seen[f.name] {
			continue // a library of several programs, or a module of several features
		}
		seen[f.name] = true
		if f.source != "" {
			if f.content, err = os.ReadFile(f.source); err != nil {
				return nil, fmt.Errorf("bootimage: %w", err)
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// tools returns the host's programs that the guest's agent runs, with their libraries.
func (o *Options) tools() ([]file, error) {
	var files []file
	for _, t := range []struct {
		given, pkg, lacks string
		names             []string
		as                func(path string) string
	}{
		{o.Mkfs, "e2fsprogs", "format scratch disks", []string{"mkfs.ext4"}, func(string) string { return "mkfs.ext4" }},
		{o.Runtime, "crun", "run containers", []string{"crun", "runc"}, runtimeName},
		{o.Pause, "catatonit", "run containers", []string{"catatonit"}, func(string) string { return "catatonit" }},
	} {
		path := FindTool(t.given, t.names...)
		if path == "" {
			if t.given != none {
				o.Logger.Warn(fmt.Sprintf("%s is not installed: the guest will not be able to %s; "+
					"remedy: sudo apt-get install %s", t.names[0], t.lacks, t.pkg))
			}
			continue
		}
		p, err := program(path, "sbin/"+t.as(path))
		if err != nil {
			return nil, err
		}
		files = append(files, p...)
		if t.names[0] != "mkfs.ext4" {
			continue
		}
		if b, err := os.ReadFile("/etc/mke2fs.conf"); err == nil {
			files = append(files, file{name: "etc/mke2fs.conf", mode: 0o644, content: b})
		}
	}
	return files, nil
}

// none is the option value that leaves a tool out.
const none = "none"

// systemDirs are directories with tools that are not in every user's PATH.
var systemDirs = []string{"/sbin", "/usr/sbin", "/usr/libexec/podman", "/usr/libexec/catatonit"}

// FindTool returns the path of a tool: given, or the first of names that is installed; "" if given is "none" or none is
// installed.
func FindTool(given string, names ...string) string {
	if given == none {
		return ""
	}
	if given != "" {
		return given
	}
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
		for _, dir := range systemDirs {
			if p := filepath.Join(dir, name); isFile(p) {
				return p
			}
		}
	}
	return ""
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// runtimeName returns a container runtime's name in the guest.
func runtimeName(path string) string {
	if strings.Contains(filepath.Base(path), "runc") {
		return "runc"
	}
	return "crun"
}

// moduleFiles returns the modules and the two lists of them (see the package comment).
func moduleFiles(m *modules) []file {
	var out []file
	var now, later strings.Builder
	add := func(f feature) []string {
		var names []string
		for _, n := range m.order(f) {
			ko := n + ".ko"
			names = append(names, ko)
			out = append(out, file{name: "lib/modules/" + ko, mode: 0o644, source: filepath.Join(m.dir, m.file[n]),
				module: true})
		}
		return names
	}
	loaded := map[string]bool{}
	for _, f := range early {
		for _, ko := range add(f) {
			if !loaded[ko] {
				loaded[ko] = true
				fmt.Fprintln(&now, ko)
			}
		}
	}
	for _, f := range lazy {
		var names []string
		for _, ko := range add(f) {
			if !loaded[ko] {
				names = append(names, ko)
			}
		}
		if len(names) > 0 {
			fmt.Fprintf(&later, "%s: %s\n", f.name, strings.Join(names, " "))
		}
	}
	return append(out,
		file{name: "lib/modules.strata", mode: 0o644, content: []byte(now.String())},
		file{name: "lib/modules.strata.lazy", mode: 0o644, content: []byte(later.String())})
}

// initrd writes the archive unless it is in the cache.
func (o *Options) initrd(ctx context.Context, files []file) (string, error) {
	chunks := [][]byte{[]byte("initrd 1")}
	for _, f := range files {
		chunks = append(chunks, fmt.Appendf(nil, "%s %o %d:%d %t", f.name, f.mode, f.major, f.minor, f.module), f.content)
	}
	return o.cached(ctx, "initrd-"+digest(chunks...)+".cpio", func(w cacheFile) error {
		bw := bufio.NewWriterSize(w, 1<<20)
		if err := writeArchive(bw, files); err != nil {
			return err
		}
		return bw.Flush()
	})
}

func writeArchive(w io.Writer, files []file) error {
	cw := cpio.NewWriter(w)
	dirs := map[string]bool{".": true}
	var mkdir func(dir string) error
	mkdir = func(dir string) error {
		if dirs[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir)); err != nil {
			return err
		}
		dirs[dir] = true
		return cw.WriteHeader(cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755})
	}
	for _, f := range files {
		if err := mkdir(path.Dir(f.name)); err != nil {
			return err
		}
		if f.mode&cpio.TypeMask == 0 {
			f.mode |= cpio.TypeRegular
		}
		if f.mode&cpio.TypeMask == cpio.TypeDir {
			dirs[f.name] = true
		}
		if f.module {
			var b bytes.Buffer
			if _, err := decompress(&b, f.content, maxModule); err != nil {
				return fmt.Errorf("module %s: %w", f.source, err)
			}
			f.content = b.Bytes()
		}
		h := cpio.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Major: f.major, Minor: f.minor}
		if err := cw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := cw.Write(f.content); err != nil {
			return errors.Join(fmt.Errorf("writing %s", f.name), err)
		}
	}
	return cw.Close()
}
