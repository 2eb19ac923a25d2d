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

// joinedTypes are the namespaces of which a container may have those of another one.
var joinedTypes = []specs.LinuxNamespaceType{
	specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace}

// isOwn reports whether a namespace of a document is one that is made, or that of another container.
func isOwn(n specs.LinuxNamespace) bool {
	_, joined := ocispec.Joined(n.Path)
	return n.Path == "" || joined && slices.Contains(joinedTypes, n.Type)
}

// joinOthers puts the container of a document into the namespaces of other containers that it names, see
// ocispec.JoinPath. Whose host name it shares, it does not change. The files are open until leaveOthers is called.
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
			i.stays = false // what the first process leaves runs until all is taken away
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

// namespaceFiles are the names in /proc of namespaces that are called otherwise in documents.
var namespaceFiles = map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}

// lockPause is between two tries to lock a container.
const lockPause = 5 * time.Millisecond

// openNamespace opens a namespace of the first process of a container that runs.
func (t *Table) openNamespace(id string, kind specs.LinuxNamespaceType) (*os.File, error) {
	if !slices.Contains(joinedTypes, kind) {
		return nil, gcsserver.ErrInvalid
	}
	c := t.known(id)
	if c == nil {
		return nil, gcsserver.ErrNoContainer
	}
	// It is held while something is started there, which may be what asks.
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
	if err == nil && pid != 0 && !closing && !run.ending() { // else the number may be another process's by now
		return f, nil
	}
	if err == nil {
		f.Close()
	}
	return nil, fmt.Errorf("it does not run: %w", gcsserver.ErrNotFound)
}
