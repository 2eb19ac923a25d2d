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

// ContainerState is the state of a container, in docker's terms.
type ContainerState string

// The states of a container.
const (
	ContainerCreated ContainerState = "created" // its program has not been started yet
	ContainerRunning ContainerState = "running"
	ContainerExited  ContainerState = "exited"
)

// ContainerRecord is the persistent state of a container, stored in its folder.
type ContainerRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id"`   // 64 hexadecimal digits
	Name    string `json:"name"` // also the id of its run, and of the container in its VM
	// Image is the image reference as the user gave it, Digest its manifest digest, Layers its layer folders.
	Image  string   `json:"image,omitempty"`
	Digest string   `json:"digest,omitempty"`
	Layers []string `json:"layers,omitempty"`

	Created  time.Time      `json:"created"`
	Started  time.Time      `json:"started,omitzero"`
	Finished time.Time      `json:"finished,omitzero"`
	State    ContainerState `json:"state"`
	// Paused is set while a running container is paused.
	Paused   bool `json:"paused,omitempty"`
	ExitCode int  `json:"exitCode"`
	// OOMKilled says that the out-of-memory killer killed a process in the container.
	OOMKilled bool `json:"oomKilled"`
	// Error describes a failure that the exit code does not tell.
	Error string `json:"error,omitempty"`

	VM string `json:"vm,omitempty"` // HostVM: the host itself
	// Network is the network as the user gave it; Ports are the host ports forwarded to the container.
	Network    string            `json:"network,omitempty"`
	Ports      []vmm.PortForward `json:"ports,omitempty"`
	Process    ContainerProcess  `json:"process"`
	StopSignal int               `json:"stopSignal,omitempty"` // signal that asks the program to end; 0: SIGTERM
	OpenStdin  bool              `json:"openStdin"`
	// Foreground says that the container ends with the command that started it; AutoRemove that it is removed when it
	// ends.
	Foreground bool `json:"foreground"`
	AutoRemove bool `json:"autoRemove"`
	// Supervisor is the process id of the supervisor, for information only: the folder's lock tells whether it lives.
	Supervisor int `json:"supervisor,omitempty"`
	// Launch is opaque data of the creator that it needs to start the container again.
	Launch json.RawMessage `json:"launch,omitempty"`
}

// ContainerProcess is the program of a container.
type ContainerProcess struct {
	Args     []string    `json:"args,omitempty"`
	Env      []string    `json:"env,omitempty"`
	Dir      string      `json:"dir,omitempty"`
	User     string      `json:"user,omitempty"`
	Hostname string      `json:"hostname,omitempty"`
	Terminal bool        `json:"terminal"`
	Spec     *specs.Spec `json:"spec,omitempty"`
}

// keep stores the persistent fields of s.
func (p *ContainerProcess) keep(s vmm.ProcessSpec) {
	*p = ContainerProcess{Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User, Hostname: s.Hostname, Terminal: s.Terminal,
		Spec: s.Spec}
}

// Apply sets the persistent fields in s.
func (p ContainerProcess) Apply(s *vmm.ProcessSpec) {
	s.Args, s.Env, s.Dir, s.User, s.Hostname, s.Terminal = p.Args, p.Env, p.Dir, p.User, p.Hostname, p.Terminal
	s.Spec = p.Spec
}

const (
	containerFile    = "container.json"
	containerLock    = "lock"
	containerVersion = 1
	// maxContainerFile bounds the size of a record that is read; a spec has at most 8 MiB.
	maxContainerFile = 32 << 20
)

// ErrContainerRecord says that the record of a container is damaged, or of another version of Strata.
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
		return r, fmt.Errorf("%s: %w: version %d, this program reads version %d", dir, ErrContainerRecord, r.Version,
			containerVersion)
	case r.Name != filepath.Base(dir):
		return r, fmt.Errorf("%s: %w: it belongs to container %.64q", dir, ErrContainerRecord, r.Name)
	}
	return r, nil
}

func writeContainer(dir string, r ContainerRecord) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, containerFile), b, atomicfile.Options{})
	}
	if err != nil {
		return fmt.Errorf("write the record of container %s: %w", r.Name, err)
	}
	return nil
}

// Signal returns the signal that asks the container's program to end.
func (r ContainerRecord) Signal() syscall.Signal {
	if r.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return syscall.Signal(r.StopSignal)
}
