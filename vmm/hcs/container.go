package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// openTries bounds the attempts to create or open a container that other processes create and end meanwhile.
const openTries = 5

// startPoll is the interval of polling whether another process has started a container.
const startPoll = 20 * time.Millisecond

// containerID returns the identifier of a container's compute system. It includes that of the VM, as identifiers are
// unique on the whole host. The guest has a folder of that name for the container's files, next to the containers'
// mounts, and deletes it with its contents. As no container id has a "+", it is never the folder of a mount.
func (m *Machine) containerID(container string) string { return m.ID() + "+" + container }

// execInContainer runs a process in a root of a Linux guest over the service's own connection. The container is a
// compute system of its own, hosted by the VM. It exists while any process of it is open: the first caller creates it,
// and when the last handle is closed it ends, with all processes that still run in it.
func (m *Machine) execInContainer(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	fail := func(err error) error {
		return fmt.Errorf("start %s in container %q: %w", spec.Args[0], spec.ContainerID, err)
	}
	switch {
	case spec.ContainerID == "" || spec.Root == "":
		return nil, fail(errors.New("a container id and a root belong together"))
	case !idPattern.MatchString(spec.ContainerID):
		return nil, fail(fmt.Errorf("a compute system cannot be called %q", m.containerID(spec.ContainerID)))
	case m.enc.os != vmm.Linux:
		return nil, fail(fmt.Errorf("programs in Windows containers: %w: run it in the VM itself, "+
			"or have a container engine make the container's compute system on the mounted root", ErrNotSupported))
	}
	oci, process, named := gcs.ContainerSpec(spec)
	version := hcsschema.V21
	document, err := json.Marshal(hcsschema.ComputeSystem{
		Owner: m.owner, SchemaVersion: &version, HostingSystemId: m.ID(), ShouldTerminateOnLastHandleClosed: true,
		HostedSystem: hcsschema.LinuxHostedSystem{SchemaVersion: &version,
			OciBundlePath: gcs.ContainerBundle(m.containerID(spec.ContainerID)), OciSpecification: oci},
	})
	if err != nil {
		return nil, fail(err)
	}
	s, created, err := m.container(ctx, spec.ContainerID, string(document), named)
	if err != nil {
		return nil, fail(err)
	}
	parameters := hcsschema.LinuxProcessParameters{OciProcess: process, ProcessParameters: hcsschema.ProcessParameters{
		EmulateConsole: spec.Terminal, CreateStdInPipe: spec.Stdin != nil, CreateStdOutPipe: spec.Stdout != nil,
		CreateStdErrPipe: spec.Stderr != nil && !spec.Terminal,
	}}
	if created {
		parameters.OciProcess = nil // the first process of a container is that of its document
	} else if spec.First {
		s.discard(ctx, false)
		return nil, fail(fmt.Errorf("the container has begun already: %w", vmm.ErrOccupied))
	}
	text, err := json.Marshal(parameters)
	if err != nil {
		s.discard(ctx, created)
		return nil, fail(err)
	}
	p, err := m.startProcess(ctx, s, spec, string(text))
	if err != nil {
		s.discard(ctx, created)
		return nil, fmt.Errorf("container %q: %w", spec.ContainerID, err)
	}
	p.container = s
	return p, nil
}

// openContainer opens a container that another process has created, after waiting until it is started.
func (m *Machine) openContainer(ctx context.Context, container string) (*system, error) {
	for {
		s, err := openSystem(ctx, m.host.API, m.containerID(container))
		if err != nil {
			return nil, err
		}
		p, err := s.properties(ctx)
		if err == nil && p.State != hcsschema.StateCreated {
			return s, nil
		}
		s.discard(ctx, false)
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(startPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the start of container %q: %w", container, context.Cause(ctx))
		}
	}
}

// container creates the compute system of a container and starts it, or opens the existing one. refused is the reason
// why it cannot be created with this document, or nil.
func (m *Machine) container(ctx context.Context, container, document string,
	refused error) (s *system, created bool, err error) {
	for range openTries {
		if refused != nil {
			if s, err = m.openContainer(ctx, container); errors.Is(err, ErrDoesNotExist) {
				err = refused
			}
			return s, false, err
		}
		s, err = createSystem(ctx, m.host.API, m.containerID(container), document)
		if err == nil {
			if err = s.start(ctx); err != nil {
				s.discard(ctx, true)
			}
			return s, true, err
		}
		if !errors.Is(err, ErrAlreadyExists) {
			return nil, false, err
		}
		s, err = m.openContainer(ctx, container)
		if !errors.Is(err, ErrDoesNotExist) {
			return s, false, err
		}
		// Its last user has ended it meanwhile.
	}
	return nil, false, err
}
