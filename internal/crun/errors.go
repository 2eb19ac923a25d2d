package crun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stratavm/strata/internal/plaintext"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// Errors that failures of the runtime match, in addition to vmm.ErrProgramNotFound and vmm.ErrNotExecutable.
var (
	// ErrDir: the working directory cannot be entered.
	ErrDir = errors.New("the working directory cannot be entered")
	// ErrNotRunning: the container has ended or is ending.
	ErrNotRunning = errors.New("the container does not run")
	// ErrUser: the kernel does not allow the process's user or groups.
	ErrUser = errors.New("the process cannot get its user and groups")
	// ErrProc: the kernel does not allow mounting /proc.
	ErrProc = errors.New("a new /proc cannot be mounted")
	// ErrNoPlace: nothing can be made in the root, and what is to be mounted over is not there.
	ErrNoPlace = errors.New("a read-only root lacks the folder that something is mounted at")
)

// maxLog bounds what is read of the runtime's log, maxWords the length of a quoted message, in bytes.
const (
	maxLog   = 64 << 10
	maxWords = 1000
)

// failure returns the error of a call with exit code code. from is the offset of the call's messages in the log.
func (b Bundle) failure(name string, code int, from int64) error {
	words := b.complaint(from)
	if words == "" {
		return fmt.Errorf("%s %s: it ended with %d and did not say why", b.Runtime.name(), name, code)
	}
	return b.explain(name, words)
}

// explain returns an error with the runtime's message, classified by kinds.
func (b Bundle) explain(name, words string) error {
	if len(words) > maxWords {
		words = words[:maxWords] + "..."
	}
	said := plaintext.Line(words)
	if at := strings.LastIndex(said, ": "); at >= 0 { // the kernel's error, in the form of Go's messages
		said = said[:at] + strings.ToLower(said[at:])
	}
	if kind := kindOf(words); kind != nil {
		return fmt.Errorf("%w: %s %s: %s", kind, b.Runtime.name(), name, said)
	}
	return fmt.Errorf("%s %s: %s", b.Runtime.name(), name, said)
}

// kinds classify failures by the messages of crun and runc. The first match counts.
var kinds = []struct {
	all []string // substrings, all required, in lower case
	is  error
}{
	{[]string{"executable file", "not found"}, vmm.ErrProgramNotFound},
	{[]string{"open executable", "not a directory"}, vmm.ErrProgramNotFound},
	{[]string{"open executable"}, vmm.ErrNotExecutable},
	{[]string{"exec: ", "no such file"}, vmm.ErrProgramNotFound},
	{[]string{"exec: ", "not a directory"}, vmm.ErrProgramNotFound},
	{[]string{"exec: ", "executable file not found"}, vmm.ErrProgramNotFound},
	{[]string{"exec: ", "permission denied"}, vmm.ErrNotExecutable},
	{[]string{"exec: ", "is a directory"}, vmm.ErrNotExecutable},
	{[]string{"mkdir", "read-only file system"}, ErrNoPlace},
	{[]string{"chdir"}, ErrDir},
	{[]string{"mkdir", "container init"}, ErrDir},
	{[]string{"setresuid"}, ErrUser},
	{[]string{"setresgid"}, ErrUser},
	{[]string{"setgroups"}, ErrUser},
	{[]string{"setuid"}, ErrUser},
	{[]string{"setgid"}, ErrUser},
	{[]string{"container", "is paused"}, vmm.ErrPaused},
	{[]string{"paused container"}, vmm.ErrPaused},
	{[]string{"is not running"}, ErrNotRunning},
	{[]string{"container not running"}, ErrNotRunning},
	{[]string{"cannot exec in a stopped container"}, ErrNotRunning},
	{[]string{"container does not exist"}, ErrNotRunning},
	{[]string{"open `/proc/", "no such file"}, ErrNotRunning}, // its first process has just ended
	{[]string{"mount `proc`", "not permitted"}, ErrProc},
	{[]string{"mounting \"proc\"", "not permitted"}, ErrProc},
}

func kindOf(words string) error {
	words = strings.ToLower(words)
next:
	for _, k := range kinds {
		for _, part := range k.all {
			if !strings.Contains(words, part) {
				continue next
			}
		}
		return k.is
	}
	return nil
}

// complaint returns the last error in the log from an offset on, or "".
func (b Bundle) complaint(from int64) string {
	text, err := readTail(b.log(), from)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(text)) {
		var entry struct {
			Level, Msg string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" && entry.Msg != "" {
			last = entry.Msg
		}
	}
	return last
}

// readTail reads at most maxLog bytes of a file from an offset on.
func readTail(path string, from int64) ([]byte, error) {
	f, _, err := regfile.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, from, maxLog))
}
