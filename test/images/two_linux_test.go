package images

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/test/nettest"
)

// TestTwoContainers: two containers of one VM reach neither each other's processes, files nor disks; they talk over a
// port that one has published, and share a volume that both have.
func TestTwoContainers(t *testing.T) {
	b := newBox(t)
	b.needVM()
	b.run("vm", "start", "--memory", "512M", "shared")
	b.run("volume", "create", "common")
	outer, port := nettest.HostAddress(t), fmt.Sprint(nettest.UnusedPort(t))
	vm := []string{"--vm", "shared"}
	b.start(vm, "--name", "one", "-p", outer+":"+port+":80", "-v", "common:/common", debian,
		"sh", "-c", "echo hidden >/root/of-one; exec nginx -g 'daemon off;'")
	b.start(vm, "--name", "two", "--network", "user", "-v", "common:/common", debian, "sleep", "1000")
	b.eventually("the first serves", func() bool { return strings.Contains(page(outer+":"+port), "nginx") })

	two := func(script string) string { return b.run("exec", "two", "bash", "-c", script) }
	if got := two("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(got, "daemon off") ||
		!strings.Contains(got, "sleep 1000") {
		t.Errorf("the processes that the second sees: %s", got)
	}
	if got := two("find / -xdev -name of-one 2>/dev/null; cat /root/of-one 2>/dev/null; true"); got != "" {
		t.Errorf("the second sees a file of the first: %s", got)
	}
	// Its disks are those of the VM: no node of them is there, and one that root makes opens nothing.
	if got := two("find /dev -type b; cat /proc/partitions | tail -n +3 | head -n 1"); !strings.Contains(got, "sd") ||
		strings.Contains(got, "/dev") {
		t.Errorf("the disks: %s", got)
	}
	if got := two(`tail -n +3 /proc/partitions | while read major minor size name; do
		mknod /tmp/$name b $major $minor && head -c 512 /tmp/$name | wc -c; done 2>&1`); strings.Contains(got, "512") ||
		!strings.Contains(got, "not permitted") {
		t.Errorf("what the second reads of the disks: %s", got)
	}
	for _, script := range []string{"mount -t proc proc /mnt", "kill -9 $(pidof nginx)",
		"timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/80'"} {
		if got := b.fails("exec", "two", "bash", "-c", script); strings.Contains(got, "hangs") {
			t.Error(got)
		}
	}

	// With a terminal.
	typed := exec.CommandContext(t.Context(), "script", "-qec", b.strata+" exec -it two tty", "/dev/null")
	typed.Env = b.command().Env
	if out, err := typed.CombinedOutput(); err != nil || !strings.Contains(string(out), "/dev/pts/") {
		t.Errorf("a terminal: %v, %q", err, out)
	}

	// What they do have in common is what they were given.
	got := two(fmt.Sprintf(`exec 3<>/dev/tcp/%s/%s; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`, outer, port))
	if !strings.Contains(got, "200 OK") {
		t.Errorf("the second gets from the first: %q", got)
	}
	b.run("exec", "one", "sh", "-c", "echo from one >/common/note")
	if got := two("cat /common/note"); got != "from one\n" {
		t.Errorf("the second reads in the volume of both: %q", got)
	}
	b.run("rm", "-f", "one")
	if got := two("cat /common/note"); got != "from one\n" {
		t.Errorf("after the end of the first: %q", got)
	}

	// One that uses up its memory is killed, and the other is not.
	b.start(vm, "--name", "fat", "-m", "32m", debian, "tail", "/dev/zero")
	if got := b.run("wait", "fat"); got != "137\n" {
		t.Errorf("out of memory: exit code %s", got)
	}
	if r := b.inspect("fat"); !r.OOMKilled || r.State != "exited" {
		t.Errorf("out of memory: %+v", r)
	}
	if _, said, code := b.try("run", "--vm", "shared", "-m", "32m", debian, "tail", "/dev/zero"); code != 137 ||
		!strings.Contains(said, "memory") {
		t.Errorf("out of memory in the foreground: exit code %d, %s", code, said)
	}
	if got := two("echo alive"); got != "alive\n" {
		t.Errorf("the second: %q", got)
	}
	b.run("rm", "-f", "two", "fat")
	b.run("vm", "stop", "shared")
}

// TestNames: the C library of Debian finds names by the name server of this system, and those of --add-host.
func TestNames(t *testing.T) {
	both(t, func(t *testing.T, b box, flags []string) {
		resolv := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(resolv, []byte("nameserver "+nettest.NameServer(t)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		args := append(append([]string{"run"}, flags...), "--network", "user", "--add-host", "db:192.0.2.5", debian,
			"sh", "-c", "getent ahostsv4 some.name.example; getent hosts db; getent hosts localhost")
		inside := b.command(args...)
		cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"-m", "sh", "-c",
			`mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv, b.strata}, args...)...)
		cmd.Env = inside.Env
		out, err := cmd.CombinedOutput()
		for _, want := range []string{nettest.Known, "192.0.2.5", "localhost"} {
			if err != nil || !bytes.Contains(out, []byte(want)) {
				t.Errorf("%q is not among what the container finds: %v\n%s", want, err, out)
			}
		}
	})
}

// TestLocalhost: the resolvers of the C library and of perl know localhost and the container's own name, also without
// a network.
func TestLocalhost(t *testing.T) {
	both(t, func(t *testing.T, b box, flags []string) {
		const script = `getent hosts localhost >/dev/null && echo getent
for name in localhost $(hostname); do
	perl -MSocket -e 'print defined(inet_aton($ARGV[0])) ? "perl\n" : "unknown\n"' $name
done`
		got := b.run(append(append([]string{"run"}, flags...), debian, "sh", "-c", script)...)
		if got != "getent\nperl\nperl\n" {
			t.Errorf("it prints %q", got)
		}
	})
}
