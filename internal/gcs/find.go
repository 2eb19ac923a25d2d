package gcs

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/stratavm/strata/vmm"
)

// findTime is what the guest may wait for a process that is looked for, in milliseconds: not at all, but 0 could be
// taken for no limit.
const findTime = 1

// FindProcess returns a process that an earlier Client started. container is empty for the VM itself. Its output
// went with that Client. One that the guest does not know is an error matching [vmm.ErrNoProcess]; our agent knows
// those that run and the last 4096 that have ended.
func (c *Client) FindProcess(ctx context.Context, container string, pid uint32) (vmm.Process, error) {
	req := waitFor(c.named(container), pid)
	req.TimeoutInMs = findTime
	err := c.call(ctx, TypeWaitForProcess, req, &WaitResponse{}, nil)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: process %d: %w", vmm.ErrNoProcess, pid, err)
	case err != nil && !errors.Is(err, ErrTimeout): // which says that it runs
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	p := &Process{c: c, container: container, pid: pid, done: make(chan struct{})}
	p.run(vmm.ProcessSpec{}, [3]net.Conn{})
	return p, nil
}
