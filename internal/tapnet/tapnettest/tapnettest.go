//go:build linux

// Package tapnettest makes network namespaces for tests, as a CNI plugin would.
package tapnettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

// Pair is two network namespaces, connected by a pair of interfaces, that of the peer called eth0.
type Pair struct {
	// Path is the file of the namespace for a container: 192.0.2.2/24 and 2001:db8::2/64, with an MTU of 1400 and default
	// routes by the other one, which is called Peer and has 192.0.2.1 and 2001:db8::1.
	Path, Peer string
	name       string
}

const dir = "/run/netns"

var (
	count           atomic.Int32
	removeAbandoned sync.Once
)

// Abandoned removes the namespaces that tests which were killed have left, and returns their names.
func Abandoned(t testing.TB) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range all {
		var pid int
		if n, _ := fmt.Sscanf(e.Name(), "strata-%d-", &pid); n != 1 || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		// Another test may remove it at the same time.
		if exec.Command("ip", "netns", "del", e.Name()).Run() == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// New makes namespaces, which go with the test. It needs root.
func New(t testing.TB) *Pair { return Named(t, "eth0") }

// Named is New with a name for the interface of the container.
func Named(t testing.TB, link string) *Pair {
	t.Helper()
	treetest.NeedRoot(t, "to make network namespaces")
	removeAbandoned.Do(func() { Abandoned(t) })
	n := fmt.Sprintf("strata-%d-%d", os.Getpid(), count.Add(1))
	p := &Pair{Path: filepath.Join(dir, n), Peer: n + "-peer", name: n}
	t.Cleanup(func() { p.Remove(t) })
	for _, command := range []string{
		"netns add " + p.name, "netns add " + p.Peer,
		"-n " + p.name + " link add " + link + " mtu 1400 type veth peer name eth0 netns " + p.Peer,
		"-n " + p.name + " link set lo up", "-n " + p.Peer + " link set lo up",
		"-n " + p.name + " addr add 192.0.2.2/24 dev " + link, "-n " + p.Peer + " addr add 192.0.2.1/24 dev eth0",
		"-n " + p.name + " addr add 2001:db8::2/64 nodad dev " + link,
		"-n " + p.Peer + " addr add 2001:db8::1/64 dev eth0 nodad",
		"-n " + p.name + " link set up " + link, "-n " + p.Peer + " link set eth0 mtu 1400 up",
		"-n " + p.name + " route add default via 192.0.2.1", "-n " + p.name + " -6 route add default via 2001:db8::1",
	} {
		p.IP(t, strings.Fields(command)...)
	}
	return p
}

// IP runs ip.
func (p *Pair) IP(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %q: %v: %s", args, err, out)
	}
	return string(out)
}

// Remove removes the namespaces, if they are there.
func (p *Pair) Remove(testing.TB) {
	for _, n := range []string{p.name, p.Peer} {
		_ = exec.Command("ip", "netns", "del", n).Run() // it may be gone
	}
}

// Clean fails the test where a tap, or something that sends packets elsewhere, is in the namespace for a container.
func (p *Pair) Clean(t testing.TB) {
	t.Helper()
	if left := p.Left(t); left != "" {
		t.Errorf("left in the namespace: %s", left)
	}
}

// Left says what Clean would fail for.
func (p *Pair) Left(t testing.TB) string {
	t.Helper()
	if out := p.IP(t, "-n", p.name, "-o", "link"); strings.Contains(out, ": strata") {
		return out
	}
	out, err := exec.Command("tc", "-n", p.name, "qdisc", "show").CombinedOutput()
	if err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	if strings.Contains(string(out), "ingress") {
		return string(out)
	}
	return ""
}

// Name is that of the namespace for a container, as ip knows it.
func (p *Pair) Name() string { return p.name }
