package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/stratavm/strata/internal/regfile"
)

// exit is the exit of a container's first process, kept in a file of its bundle: Manager.Stop reports it when the shim
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
	return writeFile(filepath.Join(bundle, exitFile), b)
}

// writeFile replaces a file of a bundle atomically. It does not sync it.
func writeFile(name string, b []byte) error {
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// cgroupFile records, in the bundle of each container of a VM, the host control group that was created for the VM.
const cgroupFile = "strata-cgroup"

func writeCgroup(bundle, name string) error {
	if name == "" {
		return nil
	}
	if err := writeFile(filepath.Join(bundle, cgroupFile), []byte(name)); err != nil {
		return fmt.Errorf("the record of the control group: %w", err)
	}
	return nil
}

// ReadCgroup returns the control group to remove with the VM of a bundle's container; empty if none was created for it.
func ReadCgroup(bundle string) (string, error) {
	b, err := regfile.ReadState(filepath.Join(bundle, cgroupFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the record of the control group: %w", err)
	}
	return string(b), nil
}

// ReadExit returns the recorded exit of a bundle's container. Without a record it returns an exit by SIGKILL at the
// current time.
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
