package vmm

import (
	"context"
	"time"
)

// ContainerStatist is what machines and runners implement that can say what a container uses.
type ContainerStatist interface {
	// ContainerStats reports what a container uses that runs. One that does not run, or that is in no control group,
	// is an error.
	ContainerStats(ctx context.Context, containerID string) (ContainerStats, error)
}

// ContainerStats is what a container uses, all its processes together. What is not known is 0.
type ContainerStats struct {
	CPU         time.Duration `json:"cpu"`                   // since it began, of all processors
	Memory      uint64        `json:"memory"`                // bytes
	MemoryLimit uint64        `json:"memoryLimit,omitempty"` // bytes; 0: none
	Read        uint64        `json:"read"`                  // bytes, from disks
	Written     uint64        `json:"written"`               // bytes, to disks
	PIDs        uint64        `json:"pids"`                  // processes and threads
	PIDsLimit   uint64        `json:"pidsLimit,omitempty"`   // 0: none
	OOMKills    uint64        `json:"oomKills"`              // processes that were killed because memory was used up
	Paused      bool          `json:"paused,omitempty"`      // see ContainerController
	// Processes are the first of the processes, at most MaxContainerProcesses, as the machine numbers them.
	Processes []ContainerProcess `json:"processes,omitempty"`
}

// MaxContainerProcesses bounds a list of processes.
const MaxContainerProcesses = 100

// ContainerProcess is one process of a container.
type ContainerProcess struct {
	PID     uint32        `json:"pid"`
	Parent  uint32        `json:"parent"`
	UID     uint32        `json:"uid"`
	CPU     time.Duration `json:"cpu"`
	Command string        `json:"command"` // at most MaxContainerCommand bytes
}

// MaxContainerCommand bounds the command line of a ContainerProcess.
const MaxContainerCommand = 128
