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
	// savingFile exists while a machine that is saved as a template, or loaded from one, is started. During that time
	// only its starter may connect to the guest, which must not change before it is saved.
	savingFile  = "saving"
	controlPort = 0
)

func portSocket(i int) string { return fmt.Sprintf("gcs.%d.sock", i) }

func portLockName(i int) string { return fmt.Sprintf("port.%d.lock", i) }

// writeFile replaces a file atomically. Its content is void after a crash of the host, so it does not sync.
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

// runtimeFiles are the names of a machine's files in its directory.
var runtimeFiles = []string{qmpSocket, statusSocket, "gcs.*.sock", "port.*.lock", "qemu.pid", "pid",
	logFile, machineFile, savingFile, "nic*.tmp", "virtiofs.sock", atomicfile.Prefix + "*", attachedDir}

// removeFiles removes the files of a machine that is not running from its directory, except the file keep. It returns
// the number of files that it leaves.
func removeFiles(dir, keep string) (others int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	endUnconnected(dir)
	if err := disconnectAll(dir); err != nil { // their records are among the files
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

// removeState removes what a machine that is not running has left, and its directory if it is then empty.
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

// maxTail bounds how much of QEMU's log an error quotes, in bytes.
const maxTail = 2048

// logTail returns the end of QEMU's log, to be appended to an error, or "" if the log is empty.
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

// quoteTail returns the end of an untrusted text, to be appended to an error.
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
