package test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/tapnet/tapnettest"
)

// inside runs a program in the network namespace of a name, as ip netns keeps them.
func inside(t *testing.T, namespace string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", namespace}, args...)...).CombinedOutput()
	return string(out), err
}

// TestNamespace: a container has the interface of an existing network namespace, both ways, and gives it back.
func TestNamespace(t *testing.T) {
	d := need(t)
	p := tapnettest.New(t)
	www := t.TempDir()
	if err := os.WriteFile(www+"/file", []byte("served\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, run("--detach", "--with-ns", "network:"+p.Path, "--mount",
		"type=bind,src="+www+",dst=/www,options=rbind:ro", image, "net", "httpd", "-f", "-h", "/www")...)
	until(t, func() error {
		out, err := inside(t, p.Peer, "busybox", "wget", "-q", "-O", "-", "http://192.0.2.2/file")
		if out != "served\n" || err != nil {
			return fmt.Errorf("from outside: %q, %v", out, err)
		}
		return nil
	})
	server := exec.Command("ip", "netns", "exec", p.Peer, "busybox", "httpd", "-f", "-h", www)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = server.Process.Kill(), server.Wait() }()
	until(t, func() error {
		r := d.ctr(nil, "task", "exec", "--exec-id", "get", "net", "wget", "-q", "-O", "-", "http://192.0.2.1/file")
		if r.stdout != "served\n" || r.code != 0 {
			return fmt.Errorf("from inside: %q, %s", r.stdout, r.stderr)
		}
		return nil
	})
	d.must(t, 0, "task", "rm", "--force", "net")
	d.must(t, 0, "container", "rm", "net")
	d.clean(t)
	name := filepath.Base(p.Path)
	if out := p.IP(t, "-n", name, "link") + p.IP(t, "netns", "pids", name); strings.Contains(out, "strata0") ||
		strings.Count(out, "\n") != 4 {
		t.Errorf("left in the namespace: %s", out)
	}
	if out, err := inside(t, name, "tc", "qdisc"); err != nil || strings.Contains(out, "ingress") {
		t.Errorf("left in the namespace: %s, %v", out, err)
	}
}

// plugins builds CNI plugins, and describes in conf a network by them: the host has 198.51.100.1, containers get
// addresses beside it. What the plugins keep is in data. More plugins may follow, as JSON.
func plugins(t *testing.T, bin, conf, data string, more ...string) {
	t.Helper()
	const from = "github.com/containernetworking/plugins/plugins/"
	if err := build(bin, "daemon", from+"main/ptp", from+"main/loopback", from+"ipam/host-local"); err != nil {
		t.Fatal(err)
	}
	rest := strings.Join(append([]string{""}, more...), ", ")
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "ptp", "ipam": {"type": "host-local",
  "dataDir": %q, "ranges": [[{"subnet": "198.51.100.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}%s]}`, data, rest)
	name := conf + "/10-test.conflist"
	err := os.WriteFile(name+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(name+".new", name) // nobody reads half of it
	}
	if err != nil {
		t.Fatal(err)
	}
}

// released fails unless the network of plugins is nobody's any more.
func released(t *testing.T, data string) {
	t.Helper()
	if left, err := filepath.Glob(data + "/test/198.*"); len(left) > 0 || err != nil {
		t.Errorf("addresses are left: %q, %v", left, err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if strings.HasPrefix(a.String(), "198.51.100.") {
			t.Errorf("an interface of the host is left, with the address %s", a)
		}
	}
}

// serve serves a file on all addresses of the host until the test ends, and returns the port.
func serve(t *testing.T, text string) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, text)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().(*net.TCPAddr).Port
}

// get reads a file that is served.
func get(t *testing.T, url string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}

// TestCNI: ctr has CNI plugins connect the network namespace of the VM's process before the container is started.
func TestCNI(t *testing.T) {
	d := need(t)
	defer http.DefaultClient.CloseIdleConnections()
	dir := t.TempDir()
	for _, sub := range []string{"etc/cni/net.d", "opt/cni/bin", "data", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plugins(t, dir+"/opt/cni/bin", dir+"/etc/cni/net.d", dir+"/data")
	port := serve(t, "of the host")
	args := append(run("--rm", "--cni", image, "cni"), "sh", "-c", fmt.Sprintf(`wget -q -O - http://198.51.100.1:%d/
		echo; mkdir -p /www; echo of the container >/www/file; httpd -h /www; ip -4 addr show eth0; cat`, port))
	// ctr reads no other folders: its /etc, /opt and /var/lib are those of the test.
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := d.command(ctx, args...)
	cmd.Args = append([]string{"unshare", "-m", "sh", "-c", `set -e
		mount -t tmpfs none /mnt; mkdir /mnt/w /mnt/u
		mount -t overlay -o lowerdir="$0/etc:/etc",upperdir=/mnt/u,workdir=/mnt/w none /etc
		mount --bind "$0/opt" /opt; mount -t tmpfs none /var/lib; exec "$@"`, dir}, cmd.Args...)
	path, err := exec.LookPath("unshare")
	if err != nil {
		lacking(t, err.Error())
	}
	cmd.Path = path
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(stdout)
	if !said.Scan() || said.Text() != "of the host" {
		t.Errorf("the container gets %q from the host", said.Text())
	}
	address := ""
	for address == "" && said.Scan() && !strings.Contains(said.Text(), "valid_lft") { // the last line
		_, rest, _ := strings.Cut(said.Text(), "inet ")
		address, _, _ = strings.Cut(rest, "/")
	}
	if text, err := get(t, "http://"+address+"/file"); text != "of the container\n" || err != nil {
		t.Errorf("the host gets %q from the container at %q: %v", text, address, err)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Errorf("%v: %s\n%s", err, stderr.String(), d.tail())
	}
	d.clean(t)
	released(t, dir+"/data")
}
