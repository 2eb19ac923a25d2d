package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/nsthread"
)

// Dir is where a guest keeps networks: for a container ID, the namespace ID.net and the file ID.resolv.conf.
const Dir = "/run/network"

// Table has the networks of a guest's containers. Its methods may be called concurrently.
type Table struct {
	dir  string
	load func(feature string)
	turn chan struct{} // semaphore of capacity 1, empty while networks are changed

	mu   sync.Mutex
	have map[string][]hcsschema.LCOWNetworkAdapter // by container, in the order of their Add
}

// New returns an empty table. load loads the kernel modules of a feature; nil if there are none to load.
func New(dir string, load func(feature string)) *Table {
	if load == nil {
		load = func(string) {}
	}
	t := &Table{dir: dir, load: load, turn: make(chan struct{}, 1),
		have: map[string][]hcsschema.LCOWNetworkAdapter{}}
	t.turn <- struct{}{}
	return t
}

// Of implements Networks.
func (t *Table) Of(container string) (n Network, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.have[container]
	if len(all) == 0 {
		return n, false
	}
	n.Namespace, n.ResolvConf = t.files(container)
	if len(all[0].IPConfigs) > 0 {
		n.Address = all[0].IPConfigs[0].IPAddress
	}
	return n, true
}

func (t *Table) files(container string) (namespace, resolvConf string) {
	path := filepath.Join(t.dir, container)
	return path + ".net", path + ".resolv.conf"
}

// List returns the networks. It waits until a change under way has ended.
func (t *Table) List(ctx context.Context) ([]gcs.Mount, error) {
	done, err := t.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var out []gcs.Mount
	for container, all := range t.have {
		for _, s := range all {
			m := gcs.Mount{Kind: "network", Path: filepath.Join(t.dir, container, s.Name), ContainerID: container,
				Share: s.Name}
			if n, _ := fmt.Sscanf(s.ID, "nic %d", &m.Slot); n == 1 {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// begin acquires turn, and returns the function that releases it.
func (t *Table) begin(ctx context.Context) (done func(), err error) {
	select {
	case <-t.turn:
		return func() { t.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("a network is still being changed: %w: %w", gcsserver.ErrBusy, context.Cause(ctx))
	}
}

// Modify adds or removes an interface of a container. Adding the same one again, or removing one that does not exist,
// is no error.
func (t *Table) Modify(ctx context.Context, m gcsserver.Modification) error {
	var s hcsschema.LCOWNetworkAdapter
	if err := gcsserver.Decode(m.Settings, &s); err != nil {
		return err
	}
	if err := checkID(s.NamespaceID); err != nil {
		return err
	}
	done, err := t.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	switch m.RequestType {
	case hcsschema.RequestAdd:
		return t.add(ctx, s)
	case hcsschema.RequestRemove:
		return t.remove(s)
	}
	return fmt.Errorf("request type %q: %w", m.RequestType, gcsserver.ErrUnsupported)
}

// maxLinks is the maximum number of interfaces of a container.
const maxLinks = 64

func (t *Table) add(ctx context.Context, s hcsschema.LCOWNetworkAdapter) error {
	all := t.have[s.NamespaceID]
	for _, had := range all {
		switch {
		case reflect.DeepEqual(had, s):
			return nil
		case had.Name == s.Name || had.Name == "" || s.Name == "":
			return fmt.Errorf("container %s has a network, over %s: %w", s.NamespaceID, had.ID, gcsserver.ErrExists)
		}
	}
	if len(all) == maxLinks {
		return fmt.Errorf("container %s has %d networks: %w", s.NamespaceID, maxLinks, gcsserver.ErrInvalid)
	}
	c, err := parse(s)
	if err != nil {
		return err
	}
	t.load("virtio_net")
	if len(all) == 0 {
		err = t.make(ctx, s.NamespaceID, c)
	} else {
		namespace, _ := t.files(s.NamespaceID)
		if err = c.connect(ctx, namespace); err != nil {
			err = errors.Join(err, c.disconnect(namespace))
		}
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have[s.NamespaceID] = append(all, s)
	return nil
}

// make creates the namespace of a container with its first interface.
func (t *Table) make(ctx context.Context, container string, c config) error {
	namespace, resolvConf := t.files(container)
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	err := MakeNamespace(namespace)
	if err == nil {
		err = c.connect(ctx, namespace)
	}
	if err == nil {
		err = os.WriteFile(resolvConf, c.resolvConf(), 0o644)
	}
	if err != nil {
		return errors.Join(err, t.takeAway(container))
	}
	return nil
}

func (t *Table) remove(s hcsschema.LCOWNetworkAdapter) error {
	var stay []hcsschema.LCOWNetworkAdapter
	for _, had := range t.have[s.NamespaceID] {
		if had.Name != s.Name {
			stay = append(stay, had)
			continue
		}
		s = had
	}
	var err error
	switch {
	case len(stay) == 0:
		err = t.takeAway(s.NamespaceID)
	case len(stay) < len(t.have[s.NamespaceID]):
		c, perr := parse(s)
		if perr != nil {
			return perr
		}
		namespace, _ := t.files(s.NamespaceID)
		err = c.disconnect(namespace)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have[s.NamespaceID] = stay; len(stay) == 0 {
		delete(t.have, s.NamespaceID)
	}
	return nil
}

// takeAway unmounts the namespace of a container and removes its files. The namespace, and its hold of the interfaces,
// ends with the last process in it.
func (t *Table) takeAway(container string) error {
	namespace, resolvConf := t.files(container)
	err := unix.Unmount(namespace, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("release the network of %s: %w", container, err)
	}
	for _, path := range []string{namespace, resolvConf} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// MakeNamespace creates a network namespace and bind-mounts it at path, a file that must not exist.
func MakeNamespace(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = nsthread.RunNew(func() error { return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "") })
	if err != nil {
		return fmt.Errorf("create a network namespace: %w", err)
	}
	return nil
}

// MountNamespace bind-mounts an open network namespace at path, an existing file. It mounts the open file itself, not
// what is at its path by now.
func MountNamespace(namespace *os.File, path string) error {
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", namespace.Fd()), path, "", unix.MS_BIND, "")
}
