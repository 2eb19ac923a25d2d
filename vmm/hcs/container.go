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

// openTries is how often a container is looked for that others make and end at the same time.
const openTries = 5

// startPoll is how often it is looked whether somebody else has started a container.
const startPoll = 20 * time.Millisecond

// containerID is the identifier of a container's compute system. That of the VM is part of it, as the
// service has one list of identifiers for all. The guest keeps files of the container in a folder of that name
// beside the containers' mounts and removes it with all that is in it: no container is called so.
func (m *Machine) containerID(container string) string { return m.ID() + "+" + container }

// execInContainer runs a process in a root of a Linux guest over the service's own connection. A
// container is then a compute system of its own, hosted by the VM. It is there as long as anybody has
// a process in it open: who comes first makes it, who goes last ends it, and with it what still runs.
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
		parameters.OciProcess = nil // a container begins with the process of its document
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

// openContainer reopens a container that somebody else has made, when it is started.
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

// container creates the compute system of a container and starts it, or reopens the one there is. refused is why it
// cannot be made with this document; nil: it can.
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
		// Whoever had it has ended it in between.
	}
	return nil, false, err
}
