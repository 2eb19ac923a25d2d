package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/internal/tapnet/tapnettest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// namespaceChange connects a container to the only link of a namespace.
func namespaceChange(t testing.TB, p *tapnettest.Pair, slot uint32, id string) vmm.Change {
	t.Helper()
	links, err := tapnet.Links(p.Path)
	if err != nil || len(links) != 1 {
		t.Fatalf("links %v, %v", links, err)
	}
	return vmm.Change{Op: vmm.Add, Device: vmm.NIC{Slot: slot, Namespace: p.Path, Link: &links[0]},
		Mount: vmm.NetworkInterface{ContainerID: id, Slot: slot, Link: &links[0]}}
}

// netprobe builds the program of that name.
func netprobe(t testing.TB, dir string) string {
	t.Helper()
	probe := filepath.Join(dir, "netprobe")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", probe, "./testdata/netprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return probe
}

// playedMachine is a machine with a tap at a link of a namespace, and a QEMU that is played: drop says what it
// answers to netdev_del, else it does all that it is asked.
func playedMachine(t *testing.T, p *tapnettest.Pair, drop func() string) (m *Machine, d vmm.NIC) {
	t.Helper()
	d = namespaceChange(t, p, 0, "a").Device.(vmm.NIC)
	m = &Machine{dir: t.TempDir(), log: slog.New(slog.DiscardHandler), unplugged: map[string]chan struct{}{},
		servers: map[string]*process{}, known: applyengine.NewKnown(false, d)}
	refusal := func(id uint64, class, desc string) string {
		return fmt.Sprintf(`{"error":{"class":%q,"desc":%q},"id":%d}`, class, desc, id)
	}
	m.qmp = scripted(t, func(command string, id uint64) string {
		switch command {
		case "qom-get", "device_del":
			return refusal(id, "DeviceNotFound", "Device 'nic0' not found")
		case "closefd":
			return refusal(id, "GenericError", "File descriptor named 'x' not found")
		case "device_add":
			return refusal(id, "GenericError", "no room")
		case "netdev_del":
			if desc := drop(); desc != "" {
				return refusal(id, "GenericError", desc)
			}
		}
		return fmt.Sprintf(`{"return":{},"id":%d}`, id)
	}, nil)
	return m, d
}

// TestTapOfAnotherTry: while QEMU may still have the tap, the record of a NIC stays, and who comes next gives the
// interface back to its namespace.
func TestTapOfAnotherTry(t *testing.T) {
	const refused = "not now"
	for name, try := range map[string]func(m *Machine, d vmm.NIC) error{
		"detach": func(m *Machine, d vmm.NIC) error {
			outcome, err := m.detachNIC(t.Context(), d)
			if err != nil && outcome != vmm.Unknown || err == nil && outcome != vmm.Done {
				t.Errorf("%s, %v", outcome, err)
			}
			return err
		},
		"detach what was never plugged": func(m *Machine, d vmm.NIC) error {
			m.known = applyengine.NewKnown(false)
			_, err := m.detachNIC(t.Context(), d)
			return err
		},
		"stale": func(m *Machine, _ vmm.NIC) error { return m.staleNICs(t.Context(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p := tapnettest.New(t)
			var tap *os.File // QEMU's
			refusals := 1
			m, d := playedMachine(t, p, func() string {
				if refusals > 0 {
					refusals--
					return refused
				}
				tap.Close()
				return ""
			})
			id := nicID(d.Slot)
			recorded, err := m.record(id, d)
			if err != nil {
				t.Fatal(err)
			}
			if tap, err = tapnet.Connect(d.Namespace, *d.Link); err != nil {
				t.Fatal(err)
			}
			defer tap.Close()
			if err := try(m, d); err == nil || !strings.Contains(err.Error(), refused) {
				t.Errorf("%v, want one with %q", err, refused)
			}
			if got := m.recordedName(id); got != recorded {
				t.Errorf("record %q, want %q", got, recorded)
			}
			if err := try(m, d); err != nil {
				t.Error(err)
			}
			if got := m.recordedName(id); got != "" {
				t.Errorf("a record is left: %q", got)
			}
			p.Clean(t)
		})
	}
	t.Run("attach", func(t *testing.T) {
		p := tapnettest.New(t)
		refusals := 1
		m, d := playedMachine(t, p, func() string {
			refusals--
			if refusals >= 0 {
				return refused
			}
			return ""
		})
		outcome, err := m.attachNIC(t.Context(), d)
		if outcome != vmm.Unknown || !strings.Contains(fmt.Sprint(err), refused) ||
			m.recordedName(nicID(d.Slot)) == "" {
			t.Errorf("%s, record %q, %v", outcome, m.recordedName(nicID(d.Slot)), err)
		}
		if err := m.staleNICs(t.Context(), nil); err != nil || m.recordedName(nicID(d.Slot)) != "" {
			t.Errorf("record %q, %v", m.recordedName(nicID(d.Slot)), err)
		}
		p.Clean(t)
	})
}

// TestVMNamespace has a container in a VM take the place of an interface of a network namespace.
func TestVMNamespace(t *testing.T) {
	img := image(t)
	p := tapnettest.New(t)
	dir := t.TempDir()
	probe := netprobe(t, dir)
	busybox, err := exec.LookPath("busybox")
	treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
	m := realVM(t, img)
	cleanup := t.Cleanup
	disk := func(int) string { return ext4File(t, dir, 0, 8<<20, busybox, probe) }
	apply(t, m, vmmtest.ContractDisk(disk, vmm.FormatRaw)(0))
	inside := func(args ...string) []string {
		return append([]string{"/run/contract/0/busybox", "nsenter", "--net=/run/network/a.net"}, args...)
	}
	c := namespaceChange(t, p, 0, "a")
	begin := time.Now()
	apply(t, m, c)
	t.Logf("a network takes %s", time.Since(begin).Round(time.Millisecond))
	apply(t, m, c) // is there already

	out, code := run(t, m, inside("/run/contract/0/busybox", "ip", "addr")...)
	link := c.Device.(vmm.NIC).Link
	for _, want := range []string{"192.0.2.2/24", "2001:db8::2/64", link.MAC, "mtu 1400", "eth0"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("code %d, no %s: %s", code, want, out)
		}
	}
	out, _ = run(t, m, inside("/run/contract/0/busybox", "ip", "route")...)
	if !strings.Contains(out, "default via 192.0.2.1 dev eth0") {
		t.Errorf("routes: %s", out)
	}
	// Both ways, over IPv4 and IPv6, in packets as large as they can be.
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		until(t, to+" is reached", func() bool {
			out, code = run(t, m, inside("/run/contract/0/busybox", "ping", "-c", "1", "-W", "5", "-s", "1300", to)...)
			return code == 0
		})
	}
	reached := func(to string) {
		t.Helper()
		until(t, to+" is reached", func() bool {
			return exec.Command("ip", "netns", "exec", p.Peer,
				"busybox", "ping", "-c", "1", "-W", "5", "-s", "1300", to).Run() == nil
		})
	}
	for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
		reached(to)
	}

	t.Run("in use", func(t *testing.T) {
		other := namespaceChange(t, p, 1, "b")
		err := m.Apply(t.Context(), other)
		host, guest := vmm.Outcomes(other, err)
		if !errors.Is(err, tapnet.ErrInUse) || host != vmm.NotDone || guest != vmm.NotDone {
			t.Errorf("host %s, guest %s: %v", host, guest, err)
		}
	})
	t.Run("found again by the next process", func(t *testing.T) {
		var obs vmm.Observation
		m, obs = reopened(t, m)
		cleanup(func() { end(t, m) })
		if obs.Device("nic 0") == nil || obs.Mount(c.Mount) == nil {
			t.Fatalf("observed %+v", obs)
		}
		reached("192.0.2.2")
		apply(t, m, c.Inverse())
		apply(t, m, c.Inverse()) // is not there any more
		p.Clean(t)
		reached("192.0.2.2") // the namespace itself
	})
	t.Run("five times", func(t *testing.T) {
		begin := time.Now()
		for range 5 {
			apply(t, m, c)
			apply(t, m, c.Inverse())
		}
		t.Logf("on and off: %s", time.Since(begin)/5)
		p.Clean(t)
	})
	t.Run("the namespace is removed meanwhile", func(t *testing.T) {
		q := tapnettest.New(t)
		gone := namespaceChange(t, q, 1, "gone")
		apply(t, m, gone)
		q.Remove(t)
		apply(t, m, gone.Inverse())
		err := m.Apply(t.Context(), gone)
		host, _ := vmm.Outcomes(gone, err)
		if !errors.Is(err, tapnet.ErrNoNamespace) || host != vmm.NotDone || !strings.Contains(err.Error(), q.Path) {
			t.Errorf("%s, %v", host, err)
		}
	})
	t.Run("QEMU is killed", func(t *testing.T) {
		apply(t, m, c)
		if err := m.Terminate(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.Clean(t)
	})
}
