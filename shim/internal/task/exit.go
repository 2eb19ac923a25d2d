package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/shim"
)

// exit is how the first process of a container ended, in a file of its bundle: what containerd asks for when the shim
// is gone.
type exit struct {
	PID  int       `json:"pid"`
	Code int       `json:"code"`
	Time time.Time `json:"time"`
}

const exitFile = "strata-exit.json"

func writeExit(bundle string, e exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	name := filepath.Join(bundle, exitFile)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// ReadExit says how the first process of a container of a bundle ended. Without a record it was killed just now.
func ReadExit(bundle string) (shim.StopStatus, error) {
	var e exit
	b, err := os.ReadFile(filepath.Join(bundle, exitFile))
	if errors.Is(err, os.ErrNotExist) {
		return shim.StopStatus{ExitStatus: killed, ExitedAt: time.Now()}, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		return shim.StopStatus{}, fmt.Errorf("the record of the container's exit: %w", err)
	}
	return shim.StopStatus{Pid: e.PID, ExitStatus: e.Code, ExitedAt: e.Time}, nil
}
