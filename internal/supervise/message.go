package supervise

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// ErrEnded is returned if the program of a container has ended or was not started yet.
var ErrEnded = errors.New("the container does not run")

// Exit is how a container has ended.
type Exit struct {
	Code int `json:"code"`
	// Error is an error of the supervisor, such as that of the cleanup.
	Error string `json:"error,omitempty"`
}

// request is the first line of a connection.
type request struct {
	Op     string  `json:"op"`
	Signal int     `json:"signal,omitempty"`
	Exec   execute `json:"exec,omitzero"`
	Stdin  bool    `json:"stdin,omitempty"` // of attach: the client sends input
	// Limits are those of update.
	Limits *specs.LinuxResources `json:"limits,omitempty"`
}

// execute is an exec process to start.
type execute struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"` // besides the container's
	Dir      string   `json:"dir,omitempty"` // empty: that of the container's program
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Width    uint16   `json:"width,omitempty"`
	Height   uint16   `json:"height,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Stdout   bool     `json:"stdout,omitempty"`
	Stderr   bool     `json:"stderr,omitempty"`
	Leave    bool     `json:"leave,omitempty"` // run it in the background, see Client.Leave
}

type size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// answer is the response to a request.
type answer struct {
	Error string `json:"error,omitempty"`
	Kind  string `json:"kind,omitempty"` // of the error
	Exit  *Exit  `json:"exit,omitempty"`
	Pid   uint32 `json:"pid,omitempty"`
	// Stats is the resource usage of the container.
	Stats *vmm.ContainerStats `json:"stats,omitempty"`
}

// kinds are the errors that clients can match, by the name in an answer.
var kinds = map[string]error{
	"no program":     vmm.ErrProgramNotFound,
	"not executable": vmm.ErrNotExecutable,
	"ended":          ErrEnded,
	"gone":           vmm.ErrGone,
	"unsupported":    errors.ErrUnsupported,
	"paused":         vmm.ErrPaused,
	"not paused":     vmm.ErrNotPaused,
}

func failed(err error) answer {
	a := answer{Error: err.Error()}
	for k, e := range kinds {
		if errors.Is(err, e) {
			a.Kind = k
		}
	}
	return a
}

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	if e := kinds[a.Kind]; e != nil {
		return &remoteError{a.Error, e}
	}
	return errors.New(a.Error)
}

// remoteError is an error of kinds with the supervisor's text.
type remoteError struct {
	words string
	is    error
}

func (e *remoteError) Error() string { return e.words }
func (e *remoteError) Unwrap() error { return e.is }

func unknown(op string) error { return fmt.Errorf("request %.40q: %w", op, errors.ErrUnsupported) }
