package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/vmm"
)

func TestNetwork(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	if _, err := exec.LookPath(slirp.Program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: apt-get install %s", err, slirp.Program)
	}
	dir := t.TempDir()
	open := func() *Machine {
		m, err := Open(Options{Dir: dir, ID: "test"})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	web := vmm.Change{Op: vmm.Add, Mount: vmm.NetworkInterface{ContainerID: "web", Slot: 2, Search: []string{"a.example"}},
		Device: vmm.NIC{Slot: 2, Ports: []vmm.PortForward{
			{Protocol: "tcp", HostIP: "127.0.0.1", HostPort: port, GuestPort: 80}}}}
	empty := func() {
		t.Helper()
		obs, err := m.Observe(t.Context())
		if err != nil || len(obs.Devices)+len(obs.Mounts) != 0 {
			t.Errorf("observed %+v, %v", obs, err)
		}
		for _, kind := range []string{networksDir, filepath.Join(fsDir, "run")} {
			if _, err := os.Stat(filepath.Join(dir, kind)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", kind, err)
			}
		}
	}

	err = m.Apply(t.Context(), web)
	host, guest := vmm.Outcomes(web, err)
	if !errors.Is(err, syscall.EADDRINUSE) || host != vmm.Done || guest != vmm.NotDone {
		t.Errorf("a port that is taken: host %s, guest %s: %v", host, guest, err)
	}
	if err := errors.Join(m.Apply(t.Context(), web.Inverse()), taken.Close()); err != nil {
		t.Fatal(err)
	}
	empty()
	for range 2 { // the second finds it there
		if err := m.Apply(t.Context(), web); err != nil {
			t.Fatal(err)
		}
	}
	n, ok := m.Of("web")
	if b, err := os.ReadFile(n.ResolvConf); !ok || string(b) != "search a.example\nnameserver 10.0.2.3\n" {
		t.Errorf("network %v: resolv.conf %q, %v", ok, b, err)
	}
	out, err := exec.Command("nsenter", "--net="+n.Namespace, "ip", "-o", "addr").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "10.0.2.100/24") {
		t.Errorf("%v: %s", err, out)
	}
	if c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		t.Errorf("the port is not forwarded: %v", err)
	} else {
		c.Close()
	}
	if _, ok := m.Of("db"); ok {
		t.Error("another container has a network")
	}

	m = open() // the next process
	obs, err := m.Observe(t.Context())
	if err != nil || obs.Device("nic 2") == nil || obs.Mount(web.Mount) == nil {
		t.Errorf("observed %+v, %v", obs, err)
	}
	for range 2 { // the second finds nothing
		if err := m.Apply(t.Context(), web.Inverse()); err != nil {
			t.Fatal(err)
		}
	}
	empty()
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	l.Close()
}
