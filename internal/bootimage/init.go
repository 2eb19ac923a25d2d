package bootimage

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
)

const (
	// initName is the program that is only the agent.
	initName = "strata-init"
	// initEnv is the environment variable with the path of a program that contains the agent.
	initEnv = "STRATA_INIT"
)

// ErrNoInit: there is no program with the guest's agent.
var ErrNoInit = errors.New("no program with Strata's guest agent")

const initRemedy = "remedy: CGO_ENABLED=0 go install github.com/stratavm/strata/cmd/strata-init@latest, and have it " +
	"beside this program, in PATH, or named by " + initEnv

// agentMarker returns guestmain.Marker. It is assembled at run time, because a constant would be contained in each
// program that imports this package.
func agentMarker() []byte {
	return []byte(strings.Join([]string{"org.stratavm.strata", "carries-the-guest-agent", "1"}, "/"))
}

// FindInit returns the path of a program that can be a guest's /init. It is the first of: given, if not empty; the
// environment variable STRATA_INIT; strata-init in the directory of the running program or in PATH; the running
// program, if it contains the agent; strata in PATH. The error matches ErrNoInit and names the problem of each.
func FindInit(given string) (string, error) {
	l := initSearch{given: given, env: os.Getenv(initEnv), lookPath: exec.LookPath}
	if exe, err := os.Executable(); err == nil {
		l.self, l.dir = exe, filepath.Dir(exe)
		if _, err := os.Stat("/proc/self/exe"); err == nil {
			l.self = "/proc/self/exe" // the running program, even if its file was replaced
		}
	}
	return l.find()
}

// initSearch are the inputs of FindInit.
type initSearch struct {
	given, env string
	self, dir  string // the running program and its directory
	lookPath   func(string) (string, error)
}

func (l initSearch) find() (string, error) {
	for _, named := range []struct{ path, by string }{{l.given, ""}, {l.env, " (named by " + initEnv + ")"}} {
		if named.path == "" {
			continue
		}
		if err := checkInit(named.path); err != nil {
			return "", fmt.Errorf("bootimage: %w%s; %s", err, named.by, initRemedy)
		}
		return named.path, nil
	}
	var candidates []string
	if l.dir != "" {
		candidates = append(candidates, filepath.Join(l.dir, initName))
	}
	inPath := func(name string) {
		if p, err := l.lookPath(name); err == nil {
			candidates = append(candidates, p)
		}
	}
	inPath(initName)
	if l.self != "" {
		candidates = append(candidates, l.self)
	}
	inPath("strata")
	var wrong []string
	for _, path := range candidates {
		err := checkInit(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			wrong = append(wrong, err.Error())
		}
	}
	text := strings.Join(wrong, "; ")
	if text != "" {
		text = " (" + text + ")"
	}
	return "", fmt.Errorf("bootimage: %w%s; %s", ErrNoInit, text, initRemedy)
}

// checkInit returns an error that matches ErrNoInit if a program cannot be a guest's /init.
func checkInit(path string) error {
	f, _, err := regfile.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInit, err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file", ErrNoInit, path)
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("%w: %s is no program for Linux: %w", ErrNoInit, path, err)
	}
	if e.Machine != hostMachine() {
		return fmt.Errorf("%w: %s is for another processor (%s, not %s)", ErrNoInit, path, e.Machine, hostMachine())
	}
	there, err := contains(f, agentMarker())
	if err != nil {
		return fmt.Errorf("%w: read %s: %w", ErrNoInit, path, err)
	}
	if !there {
		return fmt.Errorf("%w: %s does not carry it", ErrNoInit, path)
	}
	return nil
}

// contains reports whether a file contains text.
func contains(f io.ReaderAt, text []byte) (bool, error) {
	buf := make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(buf) - len(text) + 1) {
		n, err := f.ReadAt(buf, at)
		if bytes.Contains(buf[:n], text) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}
