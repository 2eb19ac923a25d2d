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

// Guests other than our agent, Microsoft's above all, have rules of their own for containers:
//
//   - A container begins with the process of its document; when that ends the container has stopped, and takes
//     no other process. It has to be deleted and created anew.
//   - Deleting is refused, and the container forgotten all the same, while anything runs in it.
//   - The guest keeps the container's bundle, and older ones a folder /run/gcs/c/NAME too, and removes both with
//     all that is in them, whatever is mounted there, when the container is deleted or cannot be created.
//   - A network namespace takes one container.

// nameSuffix is what the name of a container has in another guest than ours. A container's id has no "+": its
// scratch and root, at /run/gcs/c/ID, are never in a folder that the guest removes.
const nameSuffix = "+run"

// bundles is where the guest keeps the files of containers.
const bundles = "/run/gcs/c/"

// ContainerBundle is the bundle path of a container by the name that its guest knows it by.
func ContainerBundle(name string) string { return bundles + name }

// ours reports whether the guest is our agent.
func (c *Client) ours() bool { return c.caps.GuestDefinedCapabilities.StrataAgent > 0 }

// named is the container id of requests about a container, or about the VM itself where id is empty.
func (c *Client) named(id string) string {
	switch {
	case id == "" || id == NullContainer:
		return NullContainer
	case c.ours():
		return id
	}
	return id + nameSuffix
}

// container is what this Client knows of a container that it made known to the guest.
type container struct {
	root    string
	ready   chan struct{} // closed when others can start processes in it, or it is no longer in Client.created
	first   bool          // its first process was started here; else it was made by somebody else
	stopped chan struct{} // closed when its first process has ended
}

// hasStopped reports whether the container takes no process any more.
func (i *container) hasStopped() bool {
	select {
	case <-i.stopped:
		return true
	default:
		return false
	}
}

// enter makes the container of a process known to the guest, waiting for who does so already. first says that the
// process is the first of the container: the caller ends with started or discard.
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
			continue // it was given up
		case !info.hasStopped():
			return info, false, nil
		}
		if err := c.DeleteContainerState(ctx, spec.ContainerID); err != nil {
			return nil, false, fmt.Errorf("container %q, whose first process has ended: %w", spec.ContainerID, err)
		}
	}
}

// beginContainer starts a process with which a container of our agent begins and ends.
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

// create sends the document of a container. The error matches ErrExists when there is one of that name; with
// instance, when something runs in that one.
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

// knows reports whether info still stands for the container.
func (c *Client) knows(id string, info *container) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.created[id] == info
}

// forget takes info for a container that the guest does not know; false when that was no news. Who waits for it
// looks again.
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

// started notes the first process of a container.
func (c *Client) started(info *container, p *Process) {
	info.first = true
	p.onExit = func() { close(info.stopped) }
	close(info.ready)
}

// discard takes back a container whose first process did not start; pid is that of one that started too late.
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

// DeleteContainerState makes the guest forget a container: what runs in it is killed. It succeeds when the guest does
// not know it, and when the guest has no such request.
func (c *Client) DeleteContainerState(ctx context.Context, id string) error {
	c.mu.Lock()
	info := c.created[id]
	c.mu.Unlock()
	ended := c.emptied
	if info != nil && !c.ours() {
		select {
		case <-info.ready:
		case <-c.done: // as the request will find, too
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

// end ends a container, waits until it has ended, and deletes it. Our agent does all that itself.
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
		// One that has stopped cannot be killed, and the guest's answer does not tell that from a failure: what still
		// runs is waited for in either case.
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

// endPoll is how often it is looked whether a container has ended whose first process is not known.
const endPoll = 50 * time.Millisecond

// emptied waits until a container has no process.
func (c *Client) emptied(ctx context.Context, base RequestBase) error {
	for {
		running, err := c.processes(ctx, base)
		if _, refused := errors.AsType[*Error](err); refused || err == nil && running == 0 {
			return nil // there is nothing to be listed in a container that has stopped
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

// property asks for a property of a container.
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

// modifyContainer changes a container that runs. Other guests than ours cannot all do it, and none of those that cannot
// tells so by an error of its own.
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

// ContainerStats reports what a container uses that runs. Guests that are not ours do not know: the error matches
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
