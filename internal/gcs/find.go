package gcs

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/stratavm/strata/vmm"
)

// findTimeout is the timeout of the wait by which a process is looked up, in milliseconds. 0 might mean no limit.
const findTimeout = 1

// FindProcess returns a process that an earlier Client has started, without its streams. container is empty for the VM
// itself. If the guest does not know it, the error matches [vmm.ErrNoProcess]; our agent knows running processes and
// the last 4096 that have ended.
func (c *Client) FindProcess(ctx context.Context, container string, pid uint32) (vmm.Process, error) {
	req := waitFor(c.named(container), pid)
	req.TimeoutInMs = findTimeout
	err := c.call(ctx, TypeWaitForProcess, req, &WaitResponse{}, nil)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: process %d: %w", vmm.ErrNoProcess, pid, err)
	case err != nil && !errors.Is(err, ErrTimeout): // a timeout means that it runs
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	p := &Process{c: c, container: container, pid: pid, done: make(chan struct{})}
	p.run(vmm.ProcessSpec{}, [3]net.Conn{})
	return p, nil
}
