package qemu

import (
	"context"
	"errors"
	"time"

	"github.com/stratavm/strata/vmm"
)

// Programs serve networks and shares: one for each NIC and each share. They are children of whoever plugged the device,
// and end when QEMU does, or drops its connection to them.

// serverTime bounds how long one may take to end after that, before it is killed.
const serverTime = 2 * time.Second

// holdServer keeps hold of the program that serves a device, by QEMU's id of it.
func (m *Machine) holdServer(id string, p *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.servers[id]; old != nil {
		old.close()
	}
	m.servers[id] = p
}

// takeServer returns the program that serves a device, and keeps it no more; nil: this process has not started it.
func (m *Machine) takeServer(id string) *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.servers[id]
	delete(m.servers, id)
	return p
}

// closeServers closes the descriptors of all of them. They end with QEMU, and are waited for if that has ended.
func (m *Machine) closeServers() {
	m.mu.Lock()
	servers := m.servers
	m.servers = nil
	m.mu.Unlock()
	gone := errors.Is(m.Err(), vmm.ErrGone)
	limited, cancel := context.WithTimeout(context.Background(), serverTime)
	defer cancel()
	for _, server := range servers {
		if gone {
			server.end(limited)
		} else {
			server.close()
		}
	}
}

// end waits until a process that is about to end has ended, kills it when it takes too long, and closes its descriptor.
func (p *process) end(ctx context.Context) {
	defer p.close()
	limited, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	if p.waitExit(limited) != nil {
		_ = p.kill() // it has ended in this moment, or ends now
	}
}
