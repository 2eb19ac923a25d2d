package tapnet

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/internal/tapnet/tapnettest"
	"github.com/stratavm/strata/vmm"
)

func TestLinks(t *testing.T) {
	p := tapnettest.New(t)
	p.IP(t, "-n", p.Name(), "route", "add", "198.51.100.0/24", "via", "203.0.113.9", "dev", "eth0", "onlink",
		"metric", "7", "src", "192.0.2.2")
	p.IP(t, "-n", p.Name(), "route", "add", "203.0.113.0/24", "dev", "eth0")
	p.IP(t, "-n", p.Name(), "link", "add", "unused0", "type", "veth", "peer", "unused1")
	links, err := Links(p.Path)
	if err != nil || len(links) != 1 {
		t.Fatalf("%+v, %v", links, err)
	}
	l := links[0]
	if l.Name != "eth0" || l.MTU != 1400 || len(l.MAC) != 17 {
		t.Errorf("%+v", l)
	}
	if len(l.Addresses) != 2 || l.Addresses[0] != netip.MustParsePrefix("192.0.2.2/24") ||
		l.Addresses[1] != netip.MustParsePrefix("2001:db8::2/64") {
		t.Errorf("addresses %v", l.Addresses)
	}
	want := map[string]vmm.Route{
		"0.0.0.0/0": {Gateway: netip.MustParseAddr("192.0.2.1")},
		"::/0":      {Gateway: netip.MustParseAddr("2001:db8::1"), Metric: 1024},
		"198.51.100.0/24": {Gateway: netip.MustParseAddr("203.0.113.9"), OnLink: true, Metric: 7,
			Source: netip.MustParseAddr("192.0.2.2")},
		"203.0.113.0/24": {},
	}
	for _, r := range l.Routes {
		w, ok := want[r.To.String()]
		w.To = r.To
		if !ok || r != w {
			t.Errorf("route %+v, want %+v", r, w)
		}
		delete(want, r.To.String())
	}
	if len(want) > 0 || l.Routes[0].Gateway.IsValid() {
		t.Errorf("missing %v, or a gateway comes first: %v", want, l.Routes)
	}
	if a, ok := Address(p.Path); !ok || a.String() != "192.0.2.2" {
		t.Errorf("address %v, %v", a, ok)
	}
}

// TestRefused has what a virtual machine would not get, or not as it is meant.
func TestRefused(t *testing.T) {
	p := tapnettest.New(t)
	p.IP(t, "-n", p.Name(), "link", "add", "unused0", "type", "veth", "peer", "unused1")
	p.IP(t, "-n", p.Name(), "link", "set", "up", "unused0")
	p.IP(t, "-n", p.Name(), "link", "set", "up", "unused1")
	for command, want := range map[string]string{
		"route add 198.51.100.0/24 nexthop via 192.0.2.1 nexthop via 192.0.2.9": "198.51.100.0/24: one with several",
		"route add 198.51.100.0/24 nexthop dev unused0 nexthop dev eth0":        "198.51.100.0/24: one with several",
		"-6 route add 2001:db8:1::/48 nexthop via 2001:db8::1 nexthop via 2001:db8::9": "2001:db8:1::/48: one with " +
			"several",
		"route add 198.51.100.0/24 via inet6 2001:db8::1":       "198.51.100.0/24: one with a gateway of another family",
		"route add blackhole 198.51.100.0/24":                   "198.51.100.0/24: one of type blackhole",
		"route add unreachable default metric 9":                "type unreachable",
		"-6 route add prohibit 2001:db8:1::/48":                 "2001:db8:1::/48: one of type prohibit",
		"route add throw 198.51.100.0/24":                       "198.51.100.0/24: one of type throw",
		"addr add 203.0.113.2 peer 203.0.113.3 dev eth0":        "203.0.113.2: one with a peer (203.0.113.3/32)",
		"-6 addr add 2001:db8:2::2 peer 2001:db8:2::3 dev eth0": "2001:db8:2::2: one with a peer (2001:db8:2::3/128)",
	} {
		args := strings.Fields("-n " + p.Name() + " " + command)
		p.IP(t, args...)
		if links, err := Links(p.Path); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), p.Path) {
			t.Errorf("%s: %+v, %v, want one with %q", command, links, err, want)
		}
		if a, ok := Address(p.Path); !ok || a.String() != "192.0.2.2" {
			t.Errorf("%s: address %v, %v", command, a, ok)
		}
		p.IP(t, strings.Fields(strings.Replace(strings.Join(args, " "), " add ", " del ", 1))...)
	}
	// What others than its own interfaces have does not matter.
	p.IP(t, strings.Fields("-n "+p.Name()+" route add 198.51.100.0/24 nexthop dev unused0 nexthop dev unused1")...)
	p.IP(t, strings.Fields("-n "+p.Name()+" route add blackhole 203.0.113.0/24 table 9")...)
	if _, err := Links(p.Path); err != nil {
		t.Error(err)
	}
}

// TestOneTap has several processes connect to one link, and others that find it disconnected.
func TestOneTap(t *testing.T) {
	p := tapnettest.New(t)
	links, err := Links(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	link := links[0]
	for range 20 {
		var taps [8]*os.File
		var errs [16]error
		var work sync.WaitGroup
		begin := make(chan struct{})
		for i := range errs {
			ns, h, err := enter(p.Path)
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() {
				defer ns.Close()
				defer h.Close()
				<-begin // all at once
				if i < len(taps) {
					taps[i], errs[i] = connect(ns, h, link)
				} else {
					errs[i] = Disconnect(p.Path, link)
				}
			})
		}
		close(begin)
		work.Wait()
		var have []*os.File
		for i, err := range errs {
			if err != nil && (i >= len(taps) || !errors.Is(err, ErrInUse)) {
				t.Errorf("%d: %v", i, err)
			}
			if i < len(taps) && taps[i] != nil {
				have = append(have, taps[i])
			}
		}
		if len(have) > 1 {
			t.Errorf("%d are connected to one link", len(have))
		}
		if len(have) == 1 { // else each met one that disconnects
			out, err := exec.Command("tc", "-n", p.Name(), "filter", "show", "dev", "eth0", "ingress").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "mirred") {
				t.Errorf("nothing comes to the one that is connected: %v, %s", err, out)
			}
			have[0].Close()
		}
		if err := Disconnect(p.Path, link); err != nil {
			t.Error(err)
		}
		p.Clean(t)
	}
}

// TestDisconnectFromInside has a command in the namespace itself tidy up.
func TestDisconnectFromInside(t *testing.T) {
	p := tapnettest.New(t)
	links, err := Links(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	tap, err := Connect(p.Path, links[0])
	if err != nil {
		t.Fatal(err)
	}
	tap.Close()
	ns, err := Open(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := nsthread.Run(ns, func() error {
		if err := notOwn(ns); !errors.Is(err, ErrOwn) {
			t.Errorf("%v, want %v", err, ErrOwn)
		}
		return Disconnect(p.Path, links[0])
	}); err != nil {
		t.Error(err)
	}
	p.Clean(t)
}

func TestNoNamespace(t *testing.T) {
	p := tapnettest.New(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{file + "x": ErrNoNamespace, file: ErrNoNamespace,
		file + "/x": ErrNoNamespace, t.TempDir(): ErrNoNamespace,
		"/proc/self/ns/uts": ErrNoNamespace, "/dev/null": ErrNoNamespace, "/proc/self/ns/net": ErrOwn, p.Path: nil} {
		if err := Check(path); !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if _, err := Links(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	for _, path := range []string{file, file + "x", file + "/x"} {
		if err := Disconnect(path, vmm.Link{Name: "eth0"}); err != nil {
			t.Errorf("what is in no namespace is gone: %v", err)
		}
	}
}

func TestTap(t *testing.T) {
	p := tapnettest.New(t)
	links, err := Links(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	link := links[0]
	tap, err := Connect(p.Path, link)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if _, err := Connect(p.Path, link); !errors.Is(err, ErrInUse) {
		t.Errorf("a link is connected twice: %v", err)
	}
	if err := Disconnect(p.Path, link); err != nil { // that of another machine
		t.Error(err)
	}
	_, err = exec.LookPath("busybox")
	treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
	ping := exec.Command("ip", "netns", "exec", p.Peer, "busybox", "ping", "192.0.2.2") // again and again
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = ping.Process.Kill(), ping.Wait() }() // nobody answers it
	// A question or an answer may be too late, and comes again.
	for until := time.Now().Add(arrival); ; {
		answerARP(t, tap, link, until)
		time.Sleep(10 * time.Millisecond)
		out := p.IP(t, "-n", p.Peer, "neigh")
		if strings.Contains(out, link.MAC) {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("the answer does not arrive: %s", out)
		}
	}
	tap.Close()
	for range 2 { // the second finds nothing
		if err := Disconnect(p.Path, link); err != nil {
			t.Error(err)
		}
		p.Clean(t)
	}
	other := link
	other.MAC = "02:00:00:00:00:01"
	if _, err := Connect(p.Path, other); !errors.Is(err, ErrNoLink) {
		t.Errorf("another link of the name: %v", err)
	}
	// Who is killed leaves the qdisc, and the next one takes its place.
	for range 2 {
		if tap, err = Connect(p.Path, link); err != nil {
			t.Fatal(err)
		}
		tap.Close()
	}
	if err := Disconnect(p.Path, link); err != nil {
		t.Error(err)
	}
	p.Clean(t)
	foreign := strings.Fields("-n " + p.Name() + " qdisc add dev eth0 ingress")
	if out, err := exec.Command("tc", foreign...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	foreign = strings.Fields("-n " + p.Name() + " filter add dev eth0 parent ffff: prio 9 u32 match u32 0 0 flowid 1:1")
	if out, err := exec.Command("tc", foreign...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := Connect(p.Path, link); !errors.Is(err, ErrInUse) {
		t.Errorf("another qdisc: %v", err)
	}
	if err := Disconnect(p.Path, link); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("tc", "-n", p.Name(), "qdisc").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "ingress") {
		t.Errorf("another qdisc is gone: %v, %s", err, out)
	}
	p.IP(t, "-n", p.Name(), "link", "del", "eth0")
	if _, err := Connect(p.Path, link); !errors.Is(err, ErrNoLink) {
		t.Errorf("a link that is gone: %v", err)
	}
	p.Remove(t)
	if _, err := Connect(p.Path, link); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("a namespace that is gone: %v", err)
	}
}

// arrival bounds how long packets may take, on a system that has much else to do.
const arrival = 60 * time.Second

// headerSize is that of what precedes each frame.
const headerSize = 10

// answerARP waits for the question who has the link's address, and answers it.
func answerARP(t *testing.T, tap *os.File, link vmm.Link, until time.Time) {
	t.Helper()
	if err := tap.SetReadDeadline(until); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	for {
		n, err := tap.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if n >= headerSize+42 && bytes.Equal(b[headerSize+12:headerSize+14], []byte{8, 6}) {
			break
		}
	}
	mac, err := net.ParseMAC(link.MAC)
	if err != nil {
		t.Fatal(err)
	}
	question := b[headerSize : headerSize+42]
	answer := make([]byte, headerSize, headerSize+42)
	answer = append(answer, question[6:12]...)            // to who asks
	answer = append(answer, mac...)                       // from us
	answer = append(answer, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2) // ARP: an answer
	answer = append(answer, mac...)
	answer = append(answer, question[38:42]...) // the address that was asked for
	answer = append(answer, question[22:32]...) // who asked
	if _, err := tap.Write(answer); err != nil {
		t.Fatal(err)
	}
}
