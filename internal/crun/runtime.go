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

// ErrNoRuntime: neither crun nor runc was found.
var ErrNoRuntime = errors.New("no program that runs containers is found: install crun (apt-get install crun), or runc")

// Runtime is a program that runs containers. Its methods may be called concurrently.
type Runtime struct {
	Path string // of the program
	// sealed, if not nil, is executed instead of Path: see Seal.
	sealed *os.File
	// Start starts the program.
	Start Starter
	// Timeout bounds each call; 0: a minute.
	Timeout time.Duration
	// NoCgroups: containers get no control group, as in a user namespace to which none was delegated.
	NoCgroups bool
	// HideUnified hides the cgroup v2 hierarchy of a system with both versions from crun, which refuses a mixture.
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
	// OwnUnified starts the program in a control group of its own, named after Dir, in the hidden v2 hierarchy.
	// Otherwise the container would be in its caller's group, and see all of that in its cgroup namespace.
	OwnUnified bool
}

// Starter starts programs.
type Starter interface {
	// Run runs a command to its end and returns its exit code. If ctx ends, the command is killed with the processes in
	// its session, and the error matches the cause of ctx. Any other error means that it was not started, or was killed
	// by a signal.
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

// name returns the program's name for errors.
func (r *Runtime) name() string { return filepath.Base(r.Path) }

// executable returns the path to execute.
func (r *Runtime) executable() string {
	if r.sealed == nil {
		return r.Path
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.sealed.Fd())
}

// stateDir is the runtime's state directory in a bundle.
const stateDir = "state"

// id is the container's id for the runtime. It need not be unique, because each bundle has its own state directory.
const id = "c"

// Process is a process to start.
type Process struct {
	Stdio [3]*os.File // nil: /dev/null
	// Terminal: the process gets a terminal, and Stdio is not used.
	Terminal bool
	// Extra are files that the runtime inherits while it runs, and the process does not.
	Extra []*os.File
	// Check, if not nil, is called by Run with the process's PID before the process executes its program. An error
	// prevents that.
	Check func(pid int) error
}

// Bundle is a container in its own directory, with its OCI spec in config.json.
type Bundle struct {
	Runtime *Runtime
	Dir     string // absolute
}

// WriteConfig writes config.json.
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

// Run creates the container and starts its process. It returns the PID and the master of its terminal. After an error,
// the caller must call Delete.
func (b Bundle) Run(ctx context.Context, p Process) (pid int, master *os.File, err error) {
	name := "run"
	if p.Check != nil {
		name = "create"
	}
	return b.start(ctx, p, "pid", name, "--bundle", b.Dir)
}

// Exec starts another process, with the OCI process spec, in the container. name, which must be unique, names its files
// in the bundle.
func (b Bundle) Exec(ctx context.Context, name string, spec any, p Process) (pid int, master *os.File, err error) {
	file := filepath.Join(b.Dir, name+".json")
	if err := writeJSON(file, spec); err != nil {
		return 0, nil, err
	}
	defer os.Remove(file)
	return b.start(ctx, p, name+".pid", "exec", "--process", file)
}

// Delete kills the container and removes the runtime's state. A container that does not exist is no error.
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

// Pause asks the kernel to freeze the container. It does not wait until all processes are frozen. Pausing a paused
// container is no error.
func (b Bundle) Pause(ctx context.Context) error { return b.call(ctx, "pause", id) }

// Resume resumes the container. A container that is not paused is no error.
func (b Bundle) Resume(ctx context.Context) error { return b.call(ctx, "resume", id) }

// Update changes the limits that are set in resources. It must not be called concurrently.
func (b Bundle) Update(ctx context.Context, resources any) error {
	file := filepath.Join(b.Dir, "resources.json")
	if err := writeJSON(file, resources); err != nil {
		return err
	}
	defer os.Remove(file)
	return b.call(ctx, "update", "--resources", file, id)
}

// command returns a call of the runtime.
func (b Bundle) command(name string, args ...string) Command {
	r := b.Runtime
	// The log has a relative path, because crun takes what precedes a colon as the type of the log.
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

// run runs a call to its end. Its error has the runtime's message.
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
