package strata

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// ContainerState is where a container is in its life, in docker's words.
type ContainerState string

// The states of a container.
const (
	ContainerCreated ContainerState = "created" // its program is about to be started
	ContainerRunning ContainerState = "running"
	ContainerExited  ContainerState = "exited"
)

// ContainerRecord is what is kept of a container in its folder.
type ContainerRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id"`   // 64 hexadecimal digits
	Name    string `json:"name"` // also the id of its run, and of the container in its VM
	// Image is what the container was made of, as the user called it, Digest which one that was, Layers the folders.
	Image  string   `json:"image,omitempty"`
	Digest string   `json:"digest,omitempty"`
	Layers []string `json:"layers,omitempty"`

	Created  time.Time      `json:"created"`
	Started  time.Time      `json:"started,omitzero"`
	Finished time.Time      `json:"finished,omitzero"`
	State    ContainerState `json:"state"`
	// Paused: a container that runs was paused.
	Paused   bool `json:"paused,omitempty"`
	ExitCode int  `json:"exitCode"`
	// OOMKilled says that something in the container was killed because its memory was used up.
	OOMKilled bool `json:"oomKilled"`
	// Error says what went wrong besides what the exit code tells.
	Error string `json:"error,omitempty"`

	VM string `json:"vm,omitempty"` // HostVM: this system itself
	// Network is what network the container has, as the user called it, Ports are those of the host that lead to it.
	Network    string            `json:"network,omitempty"`
	Ports      []vmm.PortForward `json:"ports,omitempty"`
	Process    ContainerProcess  `json:"process"`
	StopSignal int               `json:"stopSignal,omitempty"` // asks the program to end
	OpenStdin  bool              `json:"openStdin"`
	// Foreground: the container belongs to the command that started it. AutoRemove: it is removed at its end.
	Foreground bool `json:"foreground"`
	AutoRemove bool `json:"autoRemove"`
	// Supervisor is the process behind the container, for people: whether it lives is told by the folder's lock.
	Supervisor int `json:"supervisor,omitempty"`
	// Launch is what whoever made the container keeps, to start it again.
	Launch json.RawMessage `json:"launch,omitempty"`
}

// ContainerProcess is the program of a container, as it was when it was first started.
type ContainerProcess struct {
	Args     []string    `json:"args,omitempty"`
	Env      []string    `json:"env,omitempty"`
	Dir      string      `json:"dir,omitempty"`
	User     string      `json:"user,omitempty"`
	Hostname string      `json:"hostname,omitempty"`
	Terminal bool        `json:"terminal"`
	Spec     *specs.Spec `json:"spec,omitempty"`
}

// keep keeps what of a program's description can be kept.
func (p *ContainerProcess) keep(s vmm.ProcessSpec) {
	*p = ContainerProcess{Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User, Hostname: s.Hostname, Terminal: s.Terminal,
		Spec: s.Spec}
}

// Apply sets the fields of a description that are kept.
func (p ContainerProcess) Apply(s *vmm.ProcessSpec) {
	s.Args, s.Env, s.Dir, s.User, s.Hostname, s.Terminal = p.Args, p.Env, p.Dir, p.User, p.Hostname, p.Terminal
	s.Spec = p.Spec
}

const (
	containerFile    = "container.json"
	containerLock    = "lock"
	containerVersion = 1
	// maxContainerFile bounds what is read of a record: a document has 8 MiB at most.
	maxContainerFile = 32 << 20
)

// ErrContainerRecord says that the record of a container cannot be read.
var ErrContainerRecord = errors.New("the container's record cannot be read")

func readContainer(dir string) (r ContainerRecord, err error) {
	b, err := regfile.Read(filepath.Join(dir, containerFile), maxContainerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	switch {
	case err != nil:
		return r, fmt.Errorf("%s: %w: %w; strata rm --force %s removes the container", dir, ErrContainerRecord, err,
			filepath.Base(dir))
	case r.Version != containerVersion:
		return r, fmt.Errorf("%s: %w: it is of version %d, this program knows %d", dir, ErrContainerRecord, r.Version,
			containerVersion)
	case r.Name != filepath.Base(dir):
		return r, fmt.Errorf("%s: %w: it is of container %.64q", dir, ErrContainerRecord, r.Name)
	}
	return r, nil
}

func writeContainer(dir string, r ContainerRecord) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, containerFile), b, atomicfile.Options{})
	}
	if err != nil {
		return fmt.Errorf("the record of container %s: %w", r.Name, err)
	}
	return nil
}

// Signal is the signal that asks the container's program to end.
func (r ContainerRecord) Signal() syscall.Signal {
	if r.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return syscall.Signal(r.StopSignal)
}
