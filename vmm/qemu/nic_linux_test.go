package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/test/nettest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// needSlirp makes a test of networks fail in CI and skip elsewhere when nothing serves them.
func needSlirp(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath(slirp.Program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; install it with: apt-get install %s", err, slirp.Program)
	}
}

func networkChange(slot uint32, id string, ports ...vmm.PortForward) vmm.Change {
	return vmm.Change{Op: vmm.Add, Device: vmm.NIC{Slot: slot, Ports: ports},
		Mount: vmm.NetworkInterface{ContainerID: id, Slot: slot, Search: []string{"example.org"}}}
}

// servers are the programs that serve networks of machines in our temporary folder or below, by their inherited folder.
func servers(t testing.TB, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/[0-9]*/fd/%d", slirp.DirFD))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(l)), "comm"))
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") &&
			strings.HasPrefix(string(comm), slirp.Program) {
			pids = append(pids, strings.Split(l, "/")[2])
		}
	}
	return pids
}

func TestVMNetwork(t *testing.T) {
	img := image(t)
	needSlirp(t)
	dir := t.TempDir()
	probe := netprobe(t, dir)
	busybox, err := exec.LookPath("busybox")
	treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
	m := realVM(t, img)
	cleanup := t.Cleanup
	tools := vmmtest.ContractDisk(func(int) string { return ext4File(t, dir, 0, 8<<20, busybox, probe) }, vmm.FormatRaw)(0)
	apply(t, m, tools)
	inside := func(id string, args ...string) []string {
		return append([]string{"/run/contract/0/busybox", "nsenter", "--net=/run/network/" + id + ".net",
			"/run/contract/0/netprobe"}, args...)
	}

	loopback, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()
	hostPort := loopback.Addr().(*net.TCPAddr).Port
	tcp, udp := nettest.UnusedPort(t), nettest.UnusedPort(t)
	a := networkChange(0, "a", vmm.PortForward{Protocol: "tcp", HostIP: "127.0.0.1", HostPort: tcp, GuestPort: 80},
		vmm.PortForward{Protocol: "udp", HostPort: udp, GuestPort: 53})
	user := vmm.UserNetwork(netip.Prefix{})
	begin := time.Now()
	apply(t, m, a)
	t.Logf("a network takes %s", time.Since(begin).Round(time.Millisecond))
	apply(t, m, a) // is there already
	obs, err := m.Observe(t.Context())
	if err != nil || obs.Device("nic 0") == nil || obs.Mount(a.Mount) == nil {
		t.Fatalf("observed %+v, %v", obs, err)
	}

	t.Run("addresses", func(t *testing.T) {
		out, code := run(t, m, inside("a", "addresses")...)
		if code != 0 || !strings.Contains(out, "10.0.2.100/24") || !strings.Contains(out, "127.0.0.1/8") {
			t.Errorf("code %d: %s", code, out)
		}
		out, _ = run(t, m, "/run/contract/0/busybox", "cat", "/run/network/a.resolv.conf")
		if out != "search example.org\nnameserver 10.0.2.3\n" {
			t.Errorf("resolv.conf: %q", out)
		}
		out, code = run(t, m, "/run/contract/0/netprobe", "addresses")
		if code != 0 || strings.Contains(out, "10.0.2") {
			t.Errorf("the VM itself has a network: %s", out)
		}
	})
	t.Run("the host's loopback is not reached", func(t *testing.T) {
		for _, ip := range []string{user.Gateway.String(), user.DNS.String(), "127.0.0.1"} {
			out, code := run(t, m, inside("a", "dial", "tcp", fmt.Sprintf("%s:%d", ip, hostPort))...)
			if code == 0 {
				t.Errorf("%s: connected: %s", ip, out)
			}
		}
	})
	start := func(args ...string) vmm.Process {
		var out firstLine
		out.came = make(chan struct{})
		p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: args, Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-out.came:
		case <-time.After(20 * time.Second):
			t.Fatal("the server does not listen")
		}
		return p
	}
	stop := func(p vmm.Process) {
		if err := errors.Join(p.Signal(context.Background(), 9), waitFor(p), p.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Run("a server that speaks first", func(t *testing.T) {
		p := start(inside("a", "greet", ":80")...)
		defer stop(p)
		for range 3 {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", tcp), 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64)
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(b)
			if string(b[:n]) != "hello\n" {
				t.Errorf("%q, %v", b[:n], err)
			}
			c.Close()
		}
	})
	t.Run("UDP", func(t *testing.T) {
		p := start(inside("a", "echo", ":53")...)
		defer stop(p)
		c, err := net.Dial("udp", net.JoinHostPort(nettest.HostAddress(t), fmt.Sprint(udp)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := make([]byte, 64)
		until(t, "an answer", func() bool { // datagrams may be lost
			_, werr := c.Write([]byte("ping"))
			derr := c.SetReadDeadline(time.Now().Add(time.Second))
			n, rerr := c.Read(b)
			return errors.Join(werr, derr, rerr) == nil && string(b[:n]) == "ping"
		})
	})
	t.Run("two networks are apart", func(t *testing.T) {
		b := networkChange(1, "b")
		apply(t, m, b)
		p := start(inside("a", "greet", ":80")...)
		for _, ip := range []string{"127.0.0.1:80", user.Address.Addr().String() + ":80"} {
			if out, code := run(t, m, inside("b", "dial", "tcp", ip)...); code == 0 {
				t.Errorf("%s: connected: %s", ip, out)
			}
		}
		stop(p)
		apply(t, m, b.Inverse())
	})
	t.Run("another subnet", func(t *testing.T) {
		subnet := netip.MustParsePrefix("10.0.3.0/24")
		s := vmm.Change{Op: vmm.Add, Device: vmm.NIC{Slot: 1, Subnet: subnet},
			Mount: vmm.NetworkInterface{ContainerID: "s", Slot: 1, Subnet: subnet}}
		apply(t, m, s)
		if out, code := run(t, m, inside("s", "addresses")...); code != 0 || !strings.Contains(out, "10.0.3.100/24") {
			t.Errorf("code %d: %s", code, out)
		}
		apply(t, m, s.Inverse())
	})
	t.Run("a port that is taken", func(t *testing.T) {
		taken := networkChange(1, "c", vmm.PortForward{
			Protocol: "tcp", HostIP: "127.0.0.1", HostPort: uint16(hostPort), GuestPort: 80})
		err := m.Apply(t.Context(), taken)
		host, guest := vmm.Outcomes(taken, err)
		if !errors.Is(err, syscall.EADDRINUSE) || host != vmm.NotDone || guest != vmm.NotDone ||
			!strings.Contains(err.Error(), fmt.Sprintf("127.0.0.1:%d", hostPort)) {
			t.Errorf("host %s, guest %s: %v", host, guest, err)
		}
	})
	t.Run("found again by the next process", func(t *testing.T) {
		if n := servers(t, m.dir); len(n) != 1 {
			t.Errorf("servers %v", n)
		}
		var obs vmm.Observation
		m, obs = reopened(t, m)
		cleanup(func() { end(t, m) })
		if obs.Device("nic 0") == nil {
			t.Fatalf("observed %+v", obs)
		}
		apply(t, m, a.Inverse())
		apply(t, m, a.Inverse()) // is not there any more
		until(t, "the server ends", func() bool { return len(servers(t, m.dir)) == 0 })
	})
	t.Run("twenty times", func(t *testing.T) {
		begin := time.Now()
		for range 20 {
			apply(t, m, a)
			apply(t, m, a.Inverse())
		}
		t.Logf("on and off: %s", time.Since(begin)/20)
		if n := servers(t, m.dir); len(n) != 0 {
			t.Errorf("servers %v", n)
		}
	})
	t.Run("the server is killed", func(t *testing.T) {
		apply(t, m, a)
		for _, s := range m.servers {
			if err := s.kill(); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, m, a.Inverse())
		apply(t, m, a)
	})
	t.Run("QEMU is killed", func(t *testing.T) {
		if err := m.Terminate(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, "the server ends", func() bool { return len(servers(t, m.dir)) == 0 })
	})
}

func waitFor(p vmm.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := p.Wait(ctx)
	return err
}

// firstLine tells when the first line was written to it.
type firstLine struct {
	bytes.Buffer
	came chan struct{}
}

func (f *firstLine) Write(b []byte) (int, error) {
	had := bytes.Contains(f.Bytes(), []byte("\n"))
	n, err := f.Buffer.Write(b)
	if !had && bytes.Contains(f.Bytes(), []byte("\n")) {
		close(f.came)
	}
	return n, err
}
