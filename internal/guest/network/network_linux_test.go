package network

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

type adapterSettings = hcsschema.LCOWNetworkAdapter

func adapter(change func(*adapterSettings)) adapterSettings {
	s := adapterSettings{NamespaceID: "web", ID: "nic 3", MacAddress: "02:53:54:52:00:03",
		IPConfigs:     []hcsschema.LCOWIPConfig{{IPAddress: "10.0.2.100", PrefixLength: 24}},
		Routes:        []hcsschema.LCOWRoute{{DestinationPrefix: "0.0.0.0/0", NextHop: "10.0.2.2"}},
		DNSServerList: "10.0.2.3,1.1.1.1", DNSSuffix: "example.org,lan"}
	if change != nil {
		change(&s)
	}
	return s
}

func TestParse(t *testing.T) {
	c, err := parse(adapter(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := "search example.org lan\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n"
	if got := string(c.resolvConf()); got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	for name, change := range map[string]func(*adapterSettings){
		"hardware address": func(s *adapterSettings) { s.MacAddress = "x" },
		"address":          func(s *adapterSettings) { s.IPConfigs[0].IPAddress = "" },
		"zone":             func(s *adapterSettings) { s.IPConfigs[0].IPAddress = "fe80::1%eth0" },
		"prefix":           func(s *adapterSettings) { s.IPConfigs[0].PrefixLength = 33 },
		"addresses":        func(s *adapterSettings) { s.IPConfigs = slices.Repeat(s.IPConfigs, maxAddresses+1) },
		"gateway":          func(s *adapterSettings) { s.Routes[0].NextHop = "gw" },
		"other gateway":    func(s *adapterSettings) { s.Routes[0].NextHop = "fe80::1" },
		"source":           func(s *adapterSettings) { s.Routes[0].Source = "x" },
		"destination":      func(s *adapterSettings) { s.Routes[0].DestinationPrefix = "10.0.0.0/33" },
		"routes":           func(s *adapterSettings) { s.Routes = slices.Repeat(s.Routes, maxRoutes+1) },
		"name":             func(s *adapterSettings) { s.Name = "a/b" },
		"loopback":         func(s *adapterSettings) { s.Name = "lo" },
		"MTU":              func(s *adapterSettings) { s.MTU = 20 },
		"server":           func(s *adapterSettings) { s.DNSServerList = "10.0.2.3\nx" },
		"servers":          func(s *adapterSettings) { s.DNSServerList = strings.Repeat("1.1.1.1,", maxServers+1) },
		"domain":           func(s *adapterSettings) { s.DNSSuffix = "a\nnameserver 6.6.6.6" },
		"domains":          func(s *adapterSettings) { s.DNSSuffix = strings.Repeat("a,", maxDomains+1) },
		"long domain":      func(s *adapterSettings) { s.DNSSuffix = strings.Repeat("a", maxDomain+1) },
	} {
		if _, err := parse(adapter(change)); !errors.Is(err, gcsserver.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func request(t *testing.T, verb hcsschema.RequestType, s adapterSettings) gcsserver.Modification {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return gcsserver.Modification{RequestType: verb, ResourceType: hcsschema.ResourceNetwork, Settings: b}
}

func TestRefused(t *testing.T) {
	table := New(filepath.Join(t.TempDir(), "network"), nil)
	for name, m := range map[string]gcsserver.Modification{
		"a path":  request(t, hcsschema.RequestAdd, adapter(func(s *adapterSettings) { s.NamespaceID = "../x" })),
		"no name": request(t, hcsschema.RequestRemove, adapter(func(s *adapterSettings) { s.NamespaceID = "" })),
		"a long name": request(t, hcsschema.RequestAdd,
			adapter(func(s *adapterSettings) { s.NamespaceID = strings.Repeat("x", maxID+1) })),
		"an update":   request(t, hcsschema.RequestUpdate, adapter(nil)),
		"no document": {RequestType: hcsschema.RequestAdd, Settings: []byte("[]")},
	} {
		if err := table.Modify(t.Context(), m); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := table.Modify(t.Context(), request(t, hcsschema.RequestRemove, adapter(nil))); err != nil {
		t.Errorf("what is not there is removed: %v", err)
	}
}

// TestNamespace moves one end of a pair of interfaces of this system, in place of a NIC, into a namespace and back.
func TestNamespace(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	dir := filepath.Join(t.TempDir(), "network")
	table := New(dir, nil)
	s := adapter(nil)
	mac, err := net.ParseMAC(s.MacAddress)
	if err != nil {
		t.Fatal(err)
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "stratatest0", HardwareAddr: mac}, PeerName: "stratatest1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) }) // it goes with its namespace
	for range 2 {                                   // the second changes nothing
		if err := table.Modify(t.Context(), request(t, hcsschema.RequestAdd, s)); err != nil {
			t.Fatal(err)
		}
	}
	other := request(t, hcsschema.RequestAdd,
		adapter(func(s *adapterSettings) { s.IPConfigs[0].IPAddress = "10.0.2.101" }))
	if err := table.Modify(t.Context(), other); !errors.Is(err, gcsserver.ErrExists) {
		t.Errorf("another network of one container: %v", err)
	}
	n, ok := table.Of("web")
	if _, err := os.Stat(n.ResolvConf); err != nil || !ok || n.Address != "10.0.2.100" {
		t.Errorf("network %+v, %v", n, err)
	}
	mounts, err := table.List(t.Context())
	if err != nil || len(mounts) != 1 || mounts[0].Slot != 3 || mounts[0].ContainerID != "web" {
		t.Errorf("list %+v, %v", mounts, err)
	}
	out, err := exec.Command("nsenter", "--net="+n.Namespace, "ip", "-o", "addr").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "10.0.2.100/24") || !strings.Contains(string(out), "127.0.0.1/8") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command("nsenter", "--net="+n.Namespace, "ip", "route").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "default via 10.0.2.2 dev eth0") {
		t.Errorf("%v: %s", err, out)
	}
	for range 2 { // the second finds nothing
		if err := table.Modify(t.Context(), request(t, hcsschema.RequestRemove, s)); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestMountNamespace mounts the namespace that was opened, whatever is at its path by then.
func TestMountNamespace(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	dir := t.TempDir()
	made, path := filepath.Join(dir, "made"), filepath.Join(dir, "path")
	if err := MakeNamespace(made); err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(made)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := errors.Join(unix.Unmount(made, unix.MNT_DETACH), os.Remove(made), os.Symlink("/proc/self/ns/net", made),
		os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := MountNamespace(ns, path); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	}()
	want, err := ns.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Stat(path); err != nil || !os.SameFile(got, want) {
		t.Errorf("another one is mounted: %v", err)
	}
}

func TestNoInterface(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	dir := filepath.Join(t.TempDir(), "network")
	table := New(dir, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := table.Modify(ctx, request(t, hcsschema.RequestAdd, adapter(nil)))
	if !errors.Is(err, gcsserver.ErrNotFound) {
		t.Errorf("%v, want one that matches %q", err, gcsserver.ErrNotFound)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, ok := table.Of("web"); ok {
		t.Error("the container has a network")
	}
}
