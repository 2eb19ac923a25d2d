package procs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
)

// joinedTypes are the types of namespaces that a container may share with another one.
var joinedTypes = []specs.LinuxNamespaceType{
	specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace}

// isOwn reports whether a namespace of a spec is a new one, or that of another container.
func isOwn(n specs.LinuxNamespace) bool {
	_, joined := ocispec.Joined(n.Path)
	return n.Path == "" || joined && slices.Contains(joinedTypes, n.Type)
}

// joinOthers replaces the paths of ocispec.JoinPath in a spec by those of the other containers' namespaces. With a
// shared UTS namespace it removes the host name. The namespaces are open until leaveOthers is called.
func (i *instance) joinOthers(spec *specs.Spec) error {
	spec.Linux.Namespaces = slices.Clone(spec.Linux.Namespaces)
	for n := range spec.Linux.Namespaces {
		ns := &spec.Linux.Namespaces[n]
		id, joined := ocispec.Joined(ns.Path)
		if !joined {
			continue
		}
		f, err := i.t.openNamespace(id, ns.Type)
		if err != nil {
			return fmt.Errorf("the %s namespace of container %q: %w", ns.Type, id, err)
		}
		i.joined = append(i.joined, f)
		ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		if ns.Type == specs.PIDNamespace {
			i.stays = false // processes may outlive the first one, until remove kills them
		}
		if ns.Type == specs.UTSNamespace {
			spec.Hostname, spec.Domainname = "", ""
		}
	}
	return nil
}

func (i *instance) leaveOthers() {
	for _, f := range i.joined {
		f.Close()
	}
	i.joined = nil
}

// namespaceFiles are the names in /proc of namespaces whose name in specs differs.
var namespaceFiles = map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}

// lockPause is the interval between attempts to lock a container.
const lockPause = 5 * time.Millisecond

// openNamespace opens a namespace of the first process of a running container.
func (t *Table) openNamespace(id string, kind specs.LinuxNamespaceType) (*os.File, error) {
	if !slices.Contains(joinedTypes, kind) {
		return nil, gcsserver.ErrInvalid
	}
	c := t.known(id)
	if c == nil {
		return nil, gcsserver.ErrNoContainer
	}
	// TryLock with a limit: the lock is held while a process is started there, and that may be the caller.
	for end := time.Now().Add(waitTime); !c.mu.TryLock(); time.Sleep(lockPause) {
		if time.Now().After(end) {
			return nil, fmt.Errorf("something is being started in it: %w", gcsserver.ErrBusy)
		}
	}
	run := c.run
	c.mu.Unlock()
	if run == nil {
		return nil, fmt.Errorf("it does not run: %w", gcsserver.ErrNotFound)
	}
	run.mu.Lock()
	pid, closing := run.pid, run.closing
	run.mu.Unlock()
	name := string(kind)
	if file, ok := namespaceFiles[kind]; ok {
		name = file
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
	if err == nil && pid != 0 && !closing && !run.ending() { // else the PID may have been reused
		return f, nil
	}
	if err == nil {
		f.Close()
	}
	return nil, fmt.Errorf("it does not run: %w", gcsserver.ErrNotFound)
}
