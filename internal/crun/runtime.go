package crun

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrNoRuntime says that there is neither crun nor runc.
var ErrNoRuntime = errors.New("no program that runs containers is found: install crun (apt-get install crun), or runc")

// Runtime is a program that runs containers. Its methods may be called concurrently.
type Runtime struct {
	Path string // of the program
	// sealed is executed instead, where it is not nil: see Seal.
	sealed *os.File
	// Start starts it.
	Start Starter
	// Timeout bounds each call; 0: a minute.
	Timeout time.Duration
	// NoCgroups: containers get no cgroup of their own, as in a user namespace to which none was delegated.
	NoCgroups bool
	// HideUnified: crun is not shown the second hierarchy of cgroups, beside the first: it refuses a mixture of both.
	HideUnified bool
}

// Command is one start of the program.
type Command struct {
	Path  string
	Args  []string // without the program's name
	Dir   string
	Env   []string
	Stdio [3]*os.File // nil: /dev/null
	Extra []*os.File  // more files, from descriptor 3 on
	// HideUnified: see Runtime.
	HideUnified bool
	// OwnUnified: what the program starts is to be in a cgroup of its own, called after Dir, in the hierarchy that is
	// hidden: it would be in that of its caller, and with a cgroup namespace made by itself see all of that.
	OwnUnified bool
}

// Starter starts programs.
type Starter interface {
	// Run runs a command to its end and returns its exit code. When ctx ends the command and what it started in
	// its session are killed; the error then matches the cause of ctx. Other errors mean that it was not started,
	// or killed by a signal.
	Run(ctx context.Context, c Command) (code int, err error)
}

// Find returns the path of crun, else of runc. The error matches ErrNoRuntime.
func Find() (string, error) {
	for _, name := range []string{"crun", "runc"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/sbin"} {
			path := filepath.Join(dir, name)
			if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", ErrNoRuntime
}

func (r *Runtime) runc() bool { return strings.HasPrefix(filepath.Base(r.Path), "runc") }

// name is what errors call the program.
func (r *Runtime) name() string { return filepath.Base(r.Path) }

// executable is the file that is executed.
func (r *Runtime) executable() string {
	if r.sealed == nil {
		return r.Path
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.sealed.Fd())
}

// stateDir is the folder in a bundle that belongs to the program.
const stateDir = "state"

// id is the container's name for the program: there is one in each folder of state.
const id = "c"

// Process is a process that is to run.
type Process struct {
	Stdio [3]*os.File // nil: /dev/null
	// Terminal: the process gets a terminal, and Stdio is not used.
	Terminal bool
	// Extra are files that stay open while the program is at work, and never reach the process.
	Extra []*os.File
	// Check, where it is not nil, looks at the container before its process, of that number, executes its program. After
	// an error it does not. For Run only.
	Check func(pid int) error
}

// Bundle is a container in a folder of its own, which holds its document in config.json.
type Bundle struct {
	Runtime *Runtime
	Dir     string // absolute
}

// WriteConfig writes the document.
func (b Bundle) WriteConfig(spec any) error {
	return writeJSON(filepath.Join(b.Dir, "config.json"), spec)
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// Run creates the container and starts its process. It returns the process's number and the master of its terminal.
// After an error something may be left of it until Delete.
func (b Bundle) Run(ctx context.Context, p Process) (pid int, master *os.File, err error) {
	name := "run"
	if p.Check != nil {
		name = "create"
	}
	return b.start(ctx, p, "pid", name, "--bundle", b.Dir)
}

// Exec starts another process, described by spec, in the container. Name is that of its files in the folder, and
// unique.
func (b Bundle) Exec(ctx context.Context, name string, spec any, p Process) (pid int, master *os.File, err error) {
	file := filepath.Join(b.Dir, name+".json")
	if err := writeJSON(file, spec); err != nil {
		return 0, nil, err
	}
	defer os.Remove(file)
	return b.start(ctx, p, name+".pid", "exec", "--process", file)
}

// Delete ends the container and removes what the program keeps of it. One that does not exist is no error.
func (b Bundle) Delete(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.Dir, stateDir, id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return b.call(ctx, "delete", "--force", id)
}

// Kill sends a signal to the first process of the container.
func (b Bundle) Kill(ctx context.Context, signal string) error {
	return b.call(ctx, "kill", id, signal)
}

// Pause stops all processes of the container, as far as the kernel comes to it. One that is paused is no error.
func (b Bundle) Pause(ctx context.Context) error { return b.call(ctx, "pause", id) }

// Resume lets the container go on. One that is not paused is no error.
func (b Bundle) Resume(ctx context.Context) error { return b.call(ctx, "resume", id) }

// Update changes the limits that are set in resources. It may not be called concurrently.
func (b Bundle) Update(ctx context.Context, resources any) error {
	file := filepath.Join(b.Dir, "resources.json")
	if err := writeJSON(file, resources); err != nil {
		return err
	}
	defer os.Remove(file)
	return b.call(ctx, "update", "--resources", file, id)
}

// command is a call of the program.
func (b Bundle) command(name string, args ...string) Command {
	r := b.Runtime
	// The log by a name relative to the working directory: crun takes what is before a colon for a kind of log.
	global := []string{"--root", filepath.Join(b.Dir, stateDir), "--log", logName, "--log-format", "json"}
	switch {
	case r.runc():
	case r.NoCgroups:
		global = append(global, "--cgroup-manager=disabled")
	default:
		global = append(global, "--cgroup-manager=cgroupfs")
	}
	return Command{Path: r.executable(), Args: append(append(global, name), args...), Dir: b.Dir,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, HideUnified: r.HideUnified}
}

const logName = "log"

func (b Bundle) log() string { return filepath.Join(b.Dir, logName) }

func (b Bundle) call(ctx context.Context, name string, args ...string) error {
	return b.run(ctx, name, b.command(name, args...))
}

// run runs a call to its end and returns its failure in the program's own words.
func (b Bundle) run(ctx context.Context, name string, c Command) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.Runtime.Timeout, time.Minute))
	defer cancel()
	from := size(b.log())
	code, err := b.Runtime.Start.Run(ctx, c)
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", b.Runtime.name(), name, err)
	case code != 0:
		return b.failure(name, code, from)
	}
	return nil
}

func size(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fi.Size()
}
