package vmm

import (
	"context"
	"time"
)

// ContainerStatist is implemented by machines and runners that can report a container's resource usage.
type ContainerStatist interface {
	// ContainerStats reports the resource usage of a running container. It is an error if the container is not running
	// or has no control group.
	ContainerStats(ctx context.Context, containerID string) (ContainerStats, error)
}

// ContainerStats is the resource usage of all processes of a container. Unknown values are 0.
type ContainerStats struct {
	CPU         time.Duration `json:"cpu"`                   // total since the start, of all processors
	Memory      uint64        `json:"memory"`                // bytes
	MemoryLimit uint64        `json:"memoryLimit,omitempty"` // bytes; 0: none
	Read        uint64        `json:"read"`                  // bytes, from disks
	Written     uint64        `json:"written"`               // bytes, to disks
	PIDs        uint64        `json:"pids"`                  // processes and threads
	PIDsLimit   uint64        `json:"pidsLimit,omitempty"`   // 0: none
	OOMKills    uint64        `json:"oomKills"`              // processes killed by the out-of-memory killer
	Paused      bool          `json:"paused,omitempty"`      // see ContainerController
	// Processes are the first MaxContainerProcesses processes; their PIDs are those of the machine.
	Processes []ContainerProcess `json:"processes,omitempty"`
}

// MaxContainerProcesses bounds ContainerStats.Processes.
const MaxContainerProcesses = 100

// ContainerProcess is one process of a container.
type ContainerProcess struct {
	PID     uint32        `json:"pid"`
	Parent  uint32        `json:"parent"`
	UID     uint32        `json:"uid"`
	CPU     time.Duration `json:"cpu"`
	Command string        `json:"command"` // at most MaxContainerCommand bytes
}

// MaxContainerCommand bounds the command line of a ContainerProcess, in bytes.
const MaxContainerCommand = 128
