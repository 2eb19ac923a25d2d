package local

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/guest/network"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/vmm"
)

// nics is the maximum number of containers with a network of their own.
const nics = 256

// networksDir has a folder for the network of each container: a file for its /etc/resolv.conf, and the folder of the
// process that serves the network.
const (
	networksDir = "networks"
	serverDir   = "server"
	resolvConf  = "resolv.conf"
)

func (m *Machine) networkDir(container string) string {
	return filepath.Join(m.dir, networksDir, container)
}

// addNetwork mounts a network namespace at path and starts the process that serves it.
func (m *Machine) addNetwork(ctx context.Context, g vmm.NetworkInterface, path string) error {
	c, err := m.record(devicesDir, vmm.RestsOn(g))
	if err != nil {
		return err
	}
	nic, ok := c.Device.(vmm.NIC)
	if !ok {
		return fmt.Errorf("there is no %s", vmm.RestsOn(g))
	}
	if err := m.endNetwork(ctx, g.ContainerID); err != nil {
		return err
	}
	dir := m.networkDir(g.ContainerID)
	if err := os.MkdirAll(filepath.Join(dir, serverDir), 0o700); err != nil {
		return err
	}
	resolver := ocispec.Resolver{Search: g.Search, Servers: g.DNS}
	if nic.Namespace == "" {
		resolver.Servers = []netip.Addr{vmm.UserNetwork(nic.Subnet).DNS}
	}
	if err := os.WriteFile(filepath.Join(dir, resolvConf), []byte(resolver.String()), 0o600); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if nic.Namespace != "" {
		return joinNamespace(nic.Namespace, path)
	}
	if err := network.MakeNamespace(path); err != nil {
		return err
	}
	_, err = slirp.Start(ctx, slirp.Config{Dir: filepath.Join(dir, serverDir), Namespace: path, Ports: nic.Ports,
		Subnet: nic.Subnet})
	return err
}

// joinNamespace mounts an existing network namespace at path, so that it exists as long as the container.
func joinNamespace(namespace, path string) error {
	ns, err := tapnet.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := network.MountNamespace(ns, path); err != nil {
		return fmt.Errorf("mount the network namespace %s: %w", namespace, err)
	}
	return nil
}

// endNetwork ends the process that serves the network of a container. If there is none, it does nothing.
func (m *Machine) endNetwork(ctx context.Context, container string) error {
	if container == "" || container != filepath.Base(container) || container == ".." {
		return fmt.Errorf("container id %q is no name of a folder", container)
	}
	dir := m.networkDir(container)
	if err := slirp.Kill(ctx, filepath.Join(dir, serverDir)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(dir)) // if this was the last network
	return nil
}

// Of implements network.Networks.
func (m *Machine) Of(container string) (n network.Network, ok bool) {
	g := vmm.NetworkInterface{ContainerID: container}
	c, err := m.record(mountsDir, g.Target())
	if err != nil || c.Mount == nil {
		return n, false
	}
	n = network.Network{Namespace: m.HostPath(g.Target()),
		ResolvConf: filepath.Join(m.networkDir(container), resolvConf)}
	c, err = m.record(devicesDir, vmm.RestsOn(c.Mount))
	if nic, ok := c.Device.(vmm.NIC); err == nil && ok && nic.Namespace == "" {
		n.Address = vmm.UserNetwork(nic.Subnet).Address.Addr().String()
	} else if err == nil && ok {
		if a, ok := tapnet.Address(n.Namespace); ok {
			n.Address = a.String()
		}
	}
	return n, true
}
