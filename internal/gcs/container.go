package gcs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// Other guests than our agent, above all Microsoft's, have their own rules for containers:
//
//   - A container starts with the process of its spec. When that has ended the container is stopped and accepts no
//     other process; it must be deleted and created again.
//   - Deleting a container in which something runs fails, but the guest forgets the container nevertheless.
//   - The guest has a directory with the container's bundle, older guests also a directory /run/gcs/c/NAME. It removes
//     both recursively, including anything mounted there, when the container is deleted or its creation fails.
//   - A network namespace can be used by one container only.

// nameSuffix is appended to a container's id to name it in a guest other than ours. Ids contain no "+", so that the
// container's scratch and root, below /run/gcs/c/ID, are never in a directory that the guest removes.
const nameSuffix = "+run"

// bundles is the guest's directory of containers.
const bundles = "/run/gcs/c/"

// ContainerBundle returns the bundle path of a container in the guest; name is its name there.
func ContainerBundle(name string) string { return bundles + name }

// ours reports whether the guest is our agent.
func (c *Client) ours() bool { return c.caps.GuestDefinedCapabilities.StrataAgent > 0 }

// named returns the ContainerId of requests about a container, or about the VM itself if id is empty.
func (c *Client) named(id string) string {
	switch {
	case id == "" || id == NullContainer:
		return NullContainer
	case c.ours():
		return id
	}
	return id + nameSuffix
}

// container is a container that this Client has created in the guest.
type container struct {
	root    string
	ready   chan struct{} // closed when processes can join it, or it is no longer in Client.created
	first   bool          // this Client has started its first process; else another one created it
	stopped chan struct{} // closed when its first process has ended
}

// hasStopped reports whether the first process has ended, so that the container accepts no other.
func (i *container) hasStopped() bool {
	select {
	case <-i.stopped:
		return true
	default:
		return false
	}
}

// enter creates the container of a process in the guest, or waits for a caller that is creating it. If first is true,
// the process is to be the container's first one, and the caller must call started or discard.
func (c *Client) enter(ctx context.Context, spec *vmm.ProcessSpec) (info *container, first bool, err error) {
	for {
		c.mu.Lock()
		info := c.created[spec.ContainerID]
		if info == nil || c.ours() && info.root != spec.Root {
			info = &container{root: spec.Root, ready: make(chan struct{}), stopped: make(chan struct{})}
			c.created[spec.ContainerID] = info
			c.mu.Unlock()
			err := c.create(ctx, spec, "")
			made := err == nil
			switch {
			case err != nil && !errors.Is(err, ErrExists):
				c.forget(spec.ContainerID, info)
				return nil, false, err
			case c.ours() || !made:
				close(info.ready)
				return info, false, nil
			}
			return info, true, nil
		}
		c.mu.Unlock()
		select {
		case <-info.ready:
		case <-ctx.Done():
			return nil, false, fmt.Errorf("%w: wait for the first process of container %q: %w",
				ErrNotSent, spec.ContainerID, context.Cause(ctx))
		case <-c.done:
			return nil, false, fmt.Errorf("%w: %w", ErrNotSent, c.Err())
		}
		switch {
		case !c.knows(spec.ContainerID, info):
			continue // the other caller has discarded it
		case !info.hasStopped():
			return info, false, nil
		}
		if err := c.DeleteContainerState(ctx, spec.ContainerID); err != nil {
			return nil, false, fmt.Errorf("container %q, whose first process has ended: %w", spec.ContainerID, err)
		}
	}
}

// beginContainer creates a container in our agent and starts its first process, with which it ends.
func (c *Client) beginContainer(ctx context.Context, spec *vmm.ProcessSpec) (*Process, error) {
	instance := rand.Text()
	if err := c.create(ctx, spec, instance); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if info := c.created[spec.ContainerID]; info == nil || info.root != spec.Root {
		info = &container{root: spec.Root, ready: make(chan struct{}), stopped: make(chan struct{})}
		close(info.ready)
		c.created[spec.ContainerID] = info
	}
	c.mu.Unlock()
	params := c.parameters(spec)
	params.StrataInstance = instance
	return c.start(ctx, *spec, params, nil)
}

// create creates a container in the guest. If one of that name exists the error matches ErrExists; with instance, only
// if something runs in it.
func (c *Client) create(ctx context.Context, spec *vmm.ProcessSpec, instance string) error {
	name := c.named(spec.ContainerID)
	oci, _, err := c.documents(spec)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	config, err := EncodeText(ContainerConfig{SchemaVersion: Version{2, 1},
		OciBundlePath: ContainerBundle(name), OciSpecification: oci, StrataInstance: instance})
	if err != nil {
		return err
	}
	req := &CreateRequest{RequestBase: RequestBase{ContainerId: name}, ContainerConfig: config,
		SupportedVersions: &SupportedVersions{MinimumVersion: "V3", MaximumVersion: "V3",
			MinimumProtocolVersion: ProtocolVersion, MaximumProtocolVersion: ProtocolVersion}}
	return c.call(ctx, TypeCreate, req, &EmptyResponse{}, nil)
}

// knows reports whether info is still the current record of the container.
func (c *Client) knows(id string, info *container) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.created[id] == info
}

// forget removes the record of a container that the guest does not know, so that waiting callers look it up again. It
// returns false if info was not the current record.
func (c *Client) forget(id string, info *container) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if info == nil || c.created[id] != info {
		return false
	}
	delete(c.created, id)
	select {
	case <-info.ready:
	default:
		close(info.ready)
	}
	return true
}

// started records the first process of a container.
func (c *Client) started(info *container, p *Process) {
	info.first = true
	p.onExit = func() { close(info.stopped) }
	close(info.ready)
}

// discard deletes a container whose first process did not start, or started too late; pid is then that process.
func (c *Client) discard(id string, info *container, pid uint32) {
	tidy, cancel := context.WithTimeout(context.Background(), tidyTime)
	defer cancel()
	ended := c.emptied
	if pid != 0 {
		ended = func(ctx context.Context, base RequestBase) error {
			err := c.call(ctx, TypeWaitForProcess, waitFor(base.ContainerId, pid), &WaitResponse{}, nil)
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			return err
		}
	}
	if err := c.end(tidy, id, ended); err != nil {
		c.log.Warn("a container whose first process did not start is left in the guest", "container", id, "err", err)
	}
	c.forget(id, info)
}

// DeleteContainerState deletes a container in the guest and kills its processes. It is no error if the guest does not
// know the container or the request.
func (c *Client) DeleteContainerState(ctx context.Context, id string) error {
	c.mu.Lock()
	info := c.created[id]
	c.mu.Unlock()
	ended := c.emptied
	if info != nil && !c.ours() {
		select {
		case <-info.ready:
		case <-c.done: // the request below returns the error
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for the start of container %q: %w", ErrNotSent, id, context.Cause(ctx))
		}
		if info.first {
			ended = func(ctx context.Context, _ RequestBase) error {
				select {
				case <-info.stopped:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
	}
	err := c.end(ctx, id, ended)
	if err == nil {
		c.forget(id, info)
	}
	return err
}

// end kills a container, waits until it has ended, and deletes it. Our agent does all that on deletion.
func (c *Client) end(ctx context.Context, id string, ended func(context.Context, RequestBase) error) error {
	base := RequestBase{ContainerId: c.named(id)}
	if !c.ours() {
		ctx, cancel := context.WithTimeout(ctx, tidyTime)
		defer cancel()
		err := c.call(ctx, TypeShutdownForced, &EmptyRequest{base}, &EmptyResponse{}, nil)
		refusal, refused := errors.AsType[*Error](err)
		switch {
		case refused && refusal.Result == ResultContainerNotFound:
			return nil
		case err != nil && !refused:
			return err
		}
		// Killing a stopped container fails, and the guest's error does not differ from other failures. So wait for
		// what still runs in either case.
		if err := ended(ctx, base); err != nil {
			return fmt.Errorf("container %q does not end: %w", id, err)
		}
	}
	if !c.caps.GuestDefinedCapabilities.DeleteContainerStateSupported {
		return nil
	}
	err := c.call(ctx, TypeDeleteContainerState, &EmptyRequest{base}, &EmptyResponse{}, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// endPoll is the poll interval for the end of a container whose first process is not known.
const endPoll = 50 * time.Millisecond

// emptied waits until a container has no process.
func (c *Client) emptied(ctx context.Context, base RequestBase) error {
	for {
		running, err := c.processes(ctx, base)
		if _, refused := errors.AsType[*Error](err); refused || err == nil && running == 0 {
			return nil // the processes of a stopped container cannot be listed
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(endPoll):
		case <-ctx.Done():
			return fmt.Errorf("%d processes run on: %w", running, context.Cause(ctx))
		}
	}
}

// processes counts the processes of a container.
func (c *Client) processes(ctx context.Context, base RequestBase) (int, error) {
	p, err := c.property(ctx, base, PropertyProcesses)
	return len(p.ProcessList), err
}

// property queries a property of a container.
func (c *Client) property(ctx context.Context, base RequestBase, name string) (p Properties, err error) {
	query, err := EncodeText(PropertyQuery{PropertyTypes: []string{name}})
	if err != nil {
		return p, err
	}
	var resp PropertiesResponse
	req := &PropertiesRequest{RequestBase: base, Query: query}
	if err := c.call(ctx, TypeGetProperties, req, &resp, nil); err != nil {
		return p, err
	}
	if err := resp.Properties.Decode(&p); err != nil {
		return p, fmt.Errorf("%w: properties: %w", ErrProtocol, err)
	}
	return p, nil
}

// PauseContainer implements vmm.ContainerController.
func (c *Client) PauseContainer(ctx context.Context, id string) error {
	return c.modifyContainer(ctx, id, "pause",
		hcsschema.GuestRequest{RequestType: hcsschema.RequestAdd, ResourceType: hcsschema.ResourcePaused})
}

// ResumeContainer implements vmm.ContainerController.
func (c *Client) ResumeContainer(ctx context.Context, id string) error {
	return c.modifyContainer(ctx, id, "resume",
		hcsschema.GuestRequest{RequestType: hcsschema.RequestRemove, ResourceType: hcsschema.ResourcePaused})
}

// UpdateContainer implements vmm.ContainerController.
func (c *Client) UpdateContainer(ctx context.Context, id string, r specs.LinuxResources) error {
	r.Devices = nil
	return c.modifyContainer(ctx, id, "update", hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
		ResourceType: hcsschema.ResourceConstraints, Settings: Constraints{Linux: r}})
}

// modifyContainer changes a running container. Not all other guests support that, and those that do not return no
// specific error.
func (c *Client) modifyContainer(ctx context.Context, id, verb string, r hcsschema.GuestRequest) error {
	var err error
	if !c.ours() {
		err = ErrUnsupported
	} else {
		err = c.call(ctx, TypeModifySettings, &ModifyRequest{RequestBase: RequestBase{ContainerId: c.named(id)}, Request: r},
			&EmptyResponse{}, nil)
	}
	if err != nil {
		return fmt.Errorf("%s container %q: %w", verb, id, err)
	}
	return nil
}

// ContainerStats returns the resource usage of a running container. With guests other than ours the error matches
// ErrUnsupported.
func (c *Client) ContainerStats(ctx context.Context, id string) (vmm.ContainerStats, error) {
	p, err := c.property(ctx, RequestBase{ContainerId: c.named(id)}, PropertyStats)
	if err == nil && p.StrataStatistics == nil {
		err = fmt.Errorf("%w: no statistics in the answer", ErrProtocol)
	}
	if err != nil {
		return vmm.ContainerStats{}, fmt.Errorf("statistics of container %q: %w", id, err)
	}
	s := *p.StrataStatistics
	s.Processes = s.Processes[:min(len(s.Processes), vmm.MaxContainerProcesses)]
	for i := range s.Processes {
		command := &s.Processes[i].Command
		*command = printable((*command)[:min(len(*command), vmm.MaxContainerCommand)])
	}
	return s, nil
}
