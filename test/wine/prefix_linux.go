package winetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/lockedfile"

	"github.com/stratavm/strata/test/wine/standin"
)

// Build is the build of Windows that Wine reports: Windows 10 version 2004.
const Build = "19041"

// registry is what a prefix is told about the Windows it is. Wine reads the version as a number.
const registry = "Windows Registry Editor Version 5.00\r\n\r\n" +
	`[HKEY_LOCAL_MACHINE\Software\Microsoft\Windows NT\CurrentVersion]` + "\r\n" +
	`"CurrentVersion"="10.0"` + "\r\n" +
	`"CSDVersion"=""` + "\r\n" +
	`"CurrentBuild"="` + Build + `"` + "\r\n" +
	`"CurrentBuildNumber"="` + Build + `"` + "\r\n"

// ErrMissing: Wine or the compiler is not installed.
var ErrMissing = errors.New("install wine and gcc-mingw-w64-x86-64")

// find finds Wine's loader and server.
func find() (loader, server string, err error) {
	for _, names := range []string{"wine", "wine64", "/usr/lib/wine/wine64"} {
		if loader, err = exec.LookPath(names); err == nil {
			break
		}
	}
	if loader == "" {
		return "", "", fmt.Errorf("%w: no wine", ErrMissing)
	}
	for _, names := range []string{"wineserver", "/usr/lib/wine/wineserver64", "/usr/lib/wine/wineserver"} {
		if server, err = exec.LookPath(names); err == nil {
			break
		}
	}
	if server == "" {
		return "", "", fmt.Errorf("%w: no wineserver", ErrMissing)
	}
	if _, err := exec.LookPath(standin.Compiler); err != nil {
		return "", "", fmt.Errorf("%w: no %s", ErrMissing, standin.Compiler)
	}
	return loader, server, nil
}

// Prefix is a Windows of its own for Wine: drive C, registry and the stand-in libraries.
type Prefix struct {
	dir            string
	loader, server string
	unlock         func()
}

// Open returns a prefix in a folder of cache, which is made when it is not there yet: that takes half a
// minute. The folder is named after what it was made with. One process at a time has it; Close gives
// it to the next.
func Open(ctx context.Context, cache string) (*Prefix, error) {
	loader, server, err := find()
	if err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, loader, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("wine --version: %w", err)
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("wine-%x", sha256.Sum256(append(version, registry...)))[:16]
	unlock, err := lockedfile.MutexAt(filepath.Join(cache, name+".lock")).Lock()
	if err != nil {
		return nil, fmt.Errorf("lock the Wine prefix: %w", err)
	}
	p := &Prefix{dir: filepath.Join(cache, name), loader: loader, server: server, unlock: unlock}
	if _, err := os.Stat(filepath.Join(p.dir, complete)); err != nil {
		if err := errors.Join(os.RemoveAll(p.dir), os.MkdirAll(p.dir, 0o700)); err != nil {
			return nil, p.fail("make a Wine prefix", err, nil)
		}
		if err := p.create(ctx); err != nil {
			return nil, err
		}
	}
	if err := standin.BuildDLLs(ctx, filepath.Join(p.DriveC(), "windows", "system32")); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// complete is a file in a prefix that was made to its end.
const complete = "complete"

func (p *Prefix) create(ctx context.Context) error {
	if out, err := p.Command(ctx, "wineboot", "--init").CombinedOutput(); err != nil {
		return p.fail("make a Wine prefix", err, out)
	}
	settings := filepath.Join(p.dir, "settings.reg")
	if err := os.WriteFile(settings, []byte(registry), 0o600); err != nil {
		return errors.Join(err, p.Close())
	}
	if out, err := p.Command(ctx, "regedit", "/S", Path(settings)).CombinedOutput(); err != nil {
		return p.fail("set the version of Windows", err, out)
	}
	// All is on disk only when the server has ended.
	if err := p.stop(); err != nil {
		return p.fail("end the Wine server", err, nil)
	}
	return os.WriteFile(filepath.Join(p.dir, complete), nil, 0o600)
}

func (p *Prefix) fail(what string, err error, out []byte) error {
	return errors.Join(fmt.Errorf("%s: %w\n%s", what, err, bytes.TrimSpace(out)), p.Close())
}

// Stay keeps the system of the prefix running between programs, until Close or ten minutes without one, and starts
// its services. Without it the system ends a little after the last program, and a program that starts the
// services hands its output on to them, so that who waits for the end of that waits for theirs.
func (p *Prefix) Stay(ctx context.Context) error {
	server := exec.CommandContext(ctx, p.server, "-p600")
	server.Env = append(os.Environ(), "WINEPREFIX="+p.dir)
	if err := server.Run(); err != nil {
		return fmt.Errorf("start wineserver: %w", err)
	}
	if err := p.Command(ctx, "cmd", "/c", "exit").Run(); err != nil {
		return fmt.Errorf("start the services of Wine: %w", err)
	}
	return nil
}

// DriveC is the folder that programs see as C:\.
func (p *Prefix) DriveC() string { return filepath.Join(p.dir, "drive_c") }

// Path is a path of this system as programs under Wine see it.
func Path(unix string) string { return `Z:` + strings.ReplaceAll(unix, "/", `\`) }

// Command is a Windows program, to be run without a window. When ctx ends it is killed.
func (p *Prefix) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.loader, append([]string{program}, args...)...)
	cmd.Env = append(os.Environ(),
		"WINEPREFIX="+p.dir, "WINEARCH=win64", "WINEDEBUG=-all", "DISPLAY=",
		// Neither the installers of .NET and the browser, nor Wine's own virtdisk, which does nothing.
		"WINEDLLOVERRIDES=mscoree,mshtml,winemenubuilder.exe=;"+
			"virtdisk,vmcompute,computestorage,computecore,cimfs,bcryptprimitives=n")
	return cmd
}

// Close ends all programs of the prefix, waits for them, and lets others have the prefix.
func (p *Prefix) Close() error {
	defer p.unlock()
	return p.stop()
}

func (p *Prefix) stop() error {
	for _, arg := range []string{"-k", "-w"} {
		cmd := exec.Command(p.server, arg)
		cmd.Env = append(os.Environ(), "WINEPREFIX="+p.dir)
		if out, err := cmd.CombinedOutput(); err != nil && arg == "-w" {
			return fmt.Errorf("wait for wineserver: %w\n%s", err, out)
		}
	}
	return nil
}
