package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

const (
	qmpSocket   = "qmp.sock"
	logFile     = "qemu.log"
	machineFile = "machine.json"
	attachedDir = "attached"
	// savingFile is there from before a machine boots of which a template is to be made, or that is loaded from one, until
	// that is done: so long nobody but who starts it may talk to its guest, which is to be saved as it is.
	savingFile  = "saving"
	controlPort = 0
)

func portSocket(i int) string { return fmt.Sprintf("gcs.%d.sock", i) }

func portLockName(i int) string { return fmt.Sprintf("port.%d.lock", i) }

// writeFile replaces a file as a whole. What it says goes with a crash of the host, so nothing is synced.
func writeFile(path string, b []byte) error { return atomicfile.Write(path, b, atomicfile.Options{}) }

func readDescription(dir string) (d description, err error) {
	b, err := regfile.ReadState(filepath.Join(dir, machineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("qemu: %s: %w", dir, vmm.ErrNoVM)
	}
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		return d, fmt.Errorf("qemu: %s: %w", filepath.Join(dir, machineFile), err)
	}
	if d.ExecPorts < 0 || d.ExecPorts >= maxPorts || d.MemoryMiB <= 0 {
		return d, fmt.Errorf("qemu: %s makes no sense: %+v", filepath.Join(dir, machineFile), d)
	}
	return d, nil
}

func (d description) write(dir string) error {
	b, err := json.MarshalIndent(d, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, machineFile), append(b, '\n'))
}

// runtimeFiles are the names of what a machine has in its directory.
var runtimeFiles = []string{qmpSocket, statusSocket, "gcs.*.sock", "port.*.lock", "qemu.pid", "pid",
	logFile, machineFile, savingFile, "nic*.tmp", "virtiofs.sock", atomicfile.Prefix + "*", attachedDir}

// removeFiles takes the files of a machine that does not run out of its directory, but for the one
// called keep. It tells how many other files there are.
func removeFiles(dir, keep string) (others int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	endUnconnected(dir)
	if err := disconnectAll(dir); err != nil { // what says so is among the files
		return 0, err
	}
	errs := []error{err}
	for _, e := range entries {
		mine := slices.ContainsFunc(runtimeFiles, func(pattern string) bool {
			ok, _ := filepath.Match(pattern, e.Name()) // the patterns are well-formed
			return ok
		})
		if !mine || e.Name() == keep {
			others++
			continue
		}
		// The directory of attachments holds links to layers; RemoveAll does not follow them.
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return others, errors.Join(errs...)
}

// removeState takes away what a machine that does not run has left, and its directory when nothing
// else is in it.
func removeState(dir string) error {
	others, err := removeFiles(dir, "")
	if err != nil || others > 0 {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxTail bounds what an error quotes of QEMU's log.
const maxTail = 2048

// logTail is the end of QEMU's log, to be put behind an error; empty when there is nothing in it.
func logTail(dir string) string {
	f, _, err := regfile.Open(filepath.Join(dir, logFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > maxTail {
		if _, err := f.Seek(-maxTail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTail))
	if err != nil {
		return ""
	}
	return quoteTail("QEMU says", string(b))
}

// quoteTail puts the end of a text that we do not trust behind an error.
func quoteTail(who, text string) string {
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && (r < 0x80 || r >= 0xa0) {
			return r
		}
		return -1
	}, text)
	if text = strings.TrimSpace(text); text == "" {
		return ""
	}
	if len(text) > maxTail {
		text = text[len(text)-maxTail:]
	}
	return "; " + who + ": " + text
}
