package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/tapnet/tapnettest"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/test/nettest"
	"github.com/stratavm/strata/uvm"
)

// networkCommands are what scripts about networks can do besides.
var networkCommands = map[string]func(*testscript.TestScript, bool, []string){
	// fetch ADDRESS REQUEST WANT: until the answer to the request has WANT in it.
	"fetch": func(ts *testscript.TestScript, _ bool, args []string) {
		request := strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(args[1])
		for until := time.Now().Add(deadline); ; time.Sleep(50 * time.Millisecond) {
			answer, err := fetch(args[0], request, args[2])
			if err == nil {
				return
			}
			if time.Now().After(until) {
				ts.Fatalf("%s answers %q, %v", args[0], answer, err)
			}
		}
	},
	// free ADDRESS: until it can be listened at.
	"free": func(ts *testscript.TestScript, _ bool, args []string) {
		for until := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
			l, err := net.Listen("tcp4", args[0])
			if err == nil {
				ts.Check(l.Close())
				return
			}
			if time.Now().After(until) {
				ts.Fatalf("%v", err)
			}
		}
	},
	// loopback PORT: listens there on the loopback addresses, and says "reached" to whoever comes.
	"loopback": func(ts *testscript.TestScript, _ bool, args []string) {
		l, err := net.Listen("tcp4", "127.0.0.1:"+args[0])
		ts.Check(err)
		ts.Defer(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "reached\n") // who asks reads it, or not
				c.Close()
			}
		}()
	},
}

// fetch sends a request, and reads until what comes has want in it.
func fetch(address, request, want string) (answer string, err error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	var b bytes.Buffer
	for !strings.Contains(b.String(), want) {
		if _, err := io.CopyN(&b, c, 1); err != nil {
			return b.String(), err
		}
	}
	return b.String(), nil
}

// TestNetworkScripts runs the scripts about networks, in real VMs.
func TestNetworkScripts(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "slirp4netns", "slirp4netns")
	busybox := need(t, "busybox", "busybox-static")
	init := bootimagetest.Strata(t)
	bootimagetest.ImageOf(t, init) // skips where there is no kernel
	probe := filepath.Join(t.TempDir(), "netprobe")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", probe, "../../vmm/qemu/testdata/netprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmds := maps.Clone(commands)
	maps.Copy(cmds, networkCommands)
	cmds["killsupervisor"] = lifeCommands["killsupervisor"]
	// names FILE: a name server for which every name has the address 192.0.2.77, and a resolv.conf that names it.
	cmds["names"] = func(ts *testscript.TestScript, _ bool, args []string) {
		conf := "search example.org\nnameserver " + nettest.NameServer(scriptTB{t, ts}) + "\n"
		ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(conf), 0o644))
	}
	// namespace: NS is the file of a network namespace for a container, PEER the name of the one it is connected to.
	var pairs sync.Map // scripts run at a time
	cmds["namespace"] = func(ts *testscript.TestScript, _ bool, _ []string) {
		p := tapnettest.New(scriptTB{t, ts})
		ts.Setenv("NS", p.Path)
		ts.Setenv("PEER", p.Peer)
		pairs.Store(p.Path, p)
	}
	// clean: until nothing of ours is left in the namespace NS.
	cmds["clean"] = func(ts *testscript.TestScript, _ bool, _ []string) {
		p, ok := pairs.Load(ts.Getenv("NS"))
		if !ok {
			ts.Fatalf("there was no namespace before")
		}
		for until := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
			left := p.(*tapnettest.Pair).Left(scriptTB{t, ts})
			if left == "" {
				return
			}
			if time.Now().After(until) {
				ts.Fatalf("left in the namespace: %s", left)
			}
		}
	}
	work := t.TempDir()
	leaktest.Check(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/net", Cmds: cmds, RequireExplicitExec: true, WorkdirRoot: work,
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("condition %q is not known", cond)
			}
			return os.Geteuid() == 0, nil
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("STRATA_INIT", init)
			env.Setenv("BUSYBOX", busybox)
			env.Setenv("NETPROBE", probe)
			env.Setenv("HOSTIP", nettest.HostAddress(t))
			for i := range 3 {
				env.Setenv(fmt.Sprintf("PORT%d", i+1), fmt.Sprint(nettest.UnusedPort(t)))
			}
			env.Defer(func() { stopAll(t, env.Getenv("STRATA_STATE_DIR"), env.Getenv("STRATA")) })
			return setup(env)
		},
	})
}

// TestNamespaceInput has namespaces with what a VM cannot have, which is no matter on this system itself.
func TestNamespaceInput(t *testing.T) {
	p := tapnettest.New(t)
	input := func(isolation string) (n *uvm.Network, err error) {
		cmd := &cli.Command{
			Flags: append(networkFlags(), &cli.StringFlag{Name: "isolation"}, &cli.StringFlag{Name: "guest"}),
			Action: func(_ context.Context, cmd *cli.Command) error {
				n, err = networkInput(cmd)
				return nil
			},
		}
		if rerr := cmd.Run(t.Context(), []string{"run", "--network", "ns:" + p.Path, "--isolation", isolation}); rerr != nil {
			t.Fatal(rerr)
		}
		return n, err
	}
	check := func(want string) {
		t.Helper()
		if n, err := input("vm"); want == "" && (err != nil || len(n.Links) != 1) ||
			want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), p.Path)) {
			t.Errorf("in a VM: %+v, %v, want one with %q", n, err, want)
		}
		if n, err := input("process"); err != nil || n.Namespace != p.Path || len(n.Links) > 0 {
			t.Errorf("on this system: %+v, %v", n, err)
		}
	}
	check("")
	p.IP(t, "-n", p.Name(), "tuntap", "add", "dev", "tun0", "mode", "tun")
	p.IP(t, "-n", p.Name(), "addr", "add", "198.51.100.1/24", "dev", "tun0")
	check("tun0: it has no hardware address")
	p.IP(t, "-n", p.Name(), "link", "del", "tun0")
	check("")
	p.IP(t, "-n", p.Name(), "link", "del", "eth0")
	check("no interface in it has an address that a VM could have")
}

// scriptTB is the test that a script is part of, where what fails is the script: others run at the time. What it cleans
// up goes with the test.
type scriptTB struct {
	testing.TB
	ts *testscript.TestScript
}

func (tb scriptTB) Helper()                           {}
func (tb scriptTB) Fatal(args ...any)                 { tb.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (tb scriptTB) Fatalf(format string, args ...any) { tb.ts.Fatalf(format, args...) }
func (tb scriptTB) Skipf(format string, args ...any)  { tb.ts.Fatalf(format, args...) }
func (tb scriptTB) Errorf(format string, args ...any) { tb.ts.Fatalf(format, args...) }
