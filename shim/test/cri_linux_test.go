package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/test/imagetest"
)

// kube is containerd as a kubelet has it, by crictl.
type kube struct {
	*daemon
	dir     string // of documents
	handler string // the runtime: strata has the sandboxer podsandbox, strata-shim the shim
}

// handlers are the runtimes that a kubelet may have.
var handlers = []string{"strata", "strata-shim"}

// call is a call of crictl.
func (k kube) call(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{"--config", os.DevNull, "--timeout", limit.String(), "--runtime-endpoint",
		"unix://" + k.daemon.dir + "/c.sock"}
	return exec.CommandContext(ctx, k.bin+"/crictl", append(flags, args...)...)
}

// try calls crictl, which has to end with a code.
func (k kube) try(code int, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := k.call(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != code {
		return "", fmt.Errorf("crictl %q: %v, want exit code %d\n%s%s", args, err, code, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// crictl calls crictl, and ends the test where that fails.
func (k kube) crictl(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, err := k.try(code, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, k.tail())
	}
	return out
}

// restart kills containerd and starts it anew. CRI has asked all shims then: until that it refuses every call.
func (k kube) restart(t *testing.T) {
	t.Helper()
	k.daemon.restart(t)
	until(t, func() error {
		_, err := k.try(0, "version")
		return err
	})
}

type object = map[string]any

// document writes a document of crictl.
func (k kube) document(t *testing.T, name string, o object) string {
	t.Helper()
	path := filepath.Join(k.dir, name+".json")
	b, err := json.Marshal(o)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts a container in a pod.
func (k kube) start(t *testing.T, sandbox, pod, name, script string, more object) (id string) {
	t.Helper()
	o := object{"metadata": object{"name": name}, "image": object{"image": image}, "command": []string{"sh", "-c", script},
		"log_path": name + ".log", "linux": object{}}
	for key, v := range more {
		o[key] = v
	}
	id = k.crictl(t, 0, "create", sandbox, k.document(t, name, o), pod)
	k.crictl(t, 0, "start", id)
	return id
}

// needKube returns the containerd that all tests share, with a network for pods and the images.
func needKube(t *testing.T, handler string) kube {
	t.Helper()
	k := kube{need(t), t.TempDir(), handler}
	t.Cleanup(func() {
		for _, pattern := range []string{cgroupParent, filepath.Dir(cgroupParent)} {
			for _, dir := range cgroups(t, pattern) {
				if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // cpu and cpuacct may be one
					t.Error(err)
				}
			}
		}
	})
	conf := k.daemon.dir + "/cni"
	if err := os.MkdirAll(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	plugins(t, k.bin, conf, k.addresses())
	if err := build(k.bin, "daemon", "sigs.k8s.io/cri-tools/cmd/crictl"); err != nil {
		t.Fatal(err)
	}
	for _, tar := range []string{k.daemon.dir + "/image.tar", imagetest.Write(t, "pause.tar", pauseTar(t))} {
		k.must(t, 0, "--namespace", "k8s.io", "image", "import", "--local", tar)
	}
	until(t, func() error {
		if out, err := k.try(0, "info"); err != nil || !strings.Contains(out, `"lastCNILoadStatus": "OK"`) {
			return fmt.Errorf("the plugins are not loaded: %s, %v", out, err)
		}
		return nil
	})
	return k
}

// cgroupParent is the control group that pods are in, as the kubelet makes one for each.
const cgroupParent = "/strata-test/pod"

// cgroups are the folders of a control group on the host, in hierarchies of both versions.
func cgroups(t *testing.T, pattern string) []string {
	t.Helper()
	unified, err := filepath.Glob("/sys/fs/cgroup" + pattern)
	if err != nil {
		t.Fatal(err)
	}
	others, _ := filepath.Glob("/sys/fs/cgroup/*" + pattern)
	return append(unified, others...)
}

// runp starts a pod, and returns its id and its document.
func (k kube) runp(t *testing.T) (id, document string) {
	t.Helper()
	document = k.podDocument(t)
	return k.crictl(t, 0, "runp", "--runtime", k.handler, document), document
}

func (k kube) podDocument(t *testing.T) string {
	t.Helper()
	return k.document(t, "pod", object{"metadata": object{"name": "p", "namespace": "default", "uid": "u", "attempt": 1},
		"hostname": "inpod", "log_directory": k.dir, "dns_config": object{"servers": []string{"192.0.2.53"}},
		"linux": object{"cgroup_parent": cgroupParent, "sysctls": object{"net.ipv4.ip_unprivileged_port_start": "79"}}})
}

// remove stops and removes a pod, of which nothing is left then.
func (k kube) remove(t *testing.T, sandbox string) {
	t.Helper()
	k.crictl(t, 0, "stopp", sandbox)
	k.crictl(t, 0, "rmp", sandbox)
	k.clean(t)
	if left := cgroups(t, cgroupParent+"/*"); slices.ContainsFunc(left, func(name string) bool {
		is, err := os.Stat(name)
		return err == nil && is.IsDir()
	}) {
		t.Errorf("control groups are left: %q", left)
	}
	released(t, k.addresses())
}

// addresses is where the plugins keep which are in use: one place for all tests, as containerd reads their description
// when it likes.
func (k kube) addresses() string { return k.daemon.dir + "/cni-data" }

// TestPod leads a pod through its life by CRI: its containers are in one VM and have its network and what it shares.
func TestPod(t *testing.T) {
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { testPod(t, needKube(t, handler)) })
	}
}

func testPod(t *testing.T, k kube) {
	d := k.daemon
	sandbox, pod := k.runp(t)
	shared := object{"mounts": []object{{"container_path": "/shared", "host_path": k.dir}}}
	first := k.start(t, sandbox, pod, "first", `mkdir /www; echo of the first >/www/file
		httpd -p 127.0.0.1:80 -h /www; httpd -p 8080 -h /www; echo in memory >/dev/shm/file; sleep 1000000`, shared)
	// The first has the processes of the pod, which is crictl's default, and the second its own, as with a kubelet.
	second := k.start(t, sandbox, pod, "second", "echo said; sleep 999999", object{"mounts": shared["mounts"],
		"linux": object{"security_context": object{"namespace_options": object{"pid": 1}}}})
	exec := func(id string, args ...string) string {
		t.Helper()
		return k.crictl(t, 0, append([]string{"exec", "--sync", id}, args...)...)
	}
	until(t, func() error {
		if out, err := k.try(0, "exec", "--sync", second, "sh", "-c",
			"wget -q -O - http://127.0.0.1/file || true"); err != nil || out != "of the first" {
			return fmt.Errorf("by the loopback address of the pod: %q, %v", out, err)
		}
		return nil
	})
	if out := exec(second, "sh", "-c", `cat /dev/shm/file; echo from the second >/shared/second; hostname
		cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start; tr '\0' ' ' </proc/1/cmdline`); out !=
		"in memory\ninpod\nnameserver 192.0.2.53\n79\nsleep 999999" {
		t.Errorf("the second container has %q", out)
	}
	if out := exec(first, "cat", "/shared/second"); out != "from the second" {
		t.Errorf("the first container finds %q in the volume", out)
	}
	if b, err := os.ReadFile(k.dir + "/second"); string(b) != "from the second\n" {
		t.Errorf("the host finds %q in the volume: %v", b, err)
	}
	namespaces := func(id string) string {
		return exec(id, "sh", "-c", "cd /proc/self/ns; for n in ipc uts net; do ls -l $n; done | tr -s ' ' | grep -o '[a-z]*:.*'")
	}
	// The pause image's waits so long, and where there is none it is what holds the namespaces.
	holder := map[string]string{"strata": "1000000", "strata-shim": "strata-init"}[k.handler]
	if out := exec(first, "cat", "/proc/1/cmdline"); !strings.Contains(out, holder) {
		t.Errorf("the first process of the pod is %q", out)
	}
	if a, b := namespaces(first), namespaces(second); a != b || strings.Count(a, "\n") != 2 {
		t.Errorf("the namespaces are %q and %q", a, b)
	}
	var state struct {
		Status struct{ Network struct{ IP string } }
	}
	if err := json.Unmarshal([]byte(k.crictl(t, 0, "inspectp", sandbox)), &state); err != nil {
		t.Error(err)
	}
	if text, err := get(t, "http://"+state.Status.Network.IP+":8080/file"); text != "of the first\n" || err != nil {
		t.Errorf("the host gets %q from the pod at %q: %v", text, state.Status.Network.IP, err)
	}
	if n := len(d.shims(t)); n != 1 {
		t.Errorf("%d shims serve the pod, want one", n)
	}
	if vms, err := filepath.Glob(d.vms() + "/k8s.io/vms/*"); len(vms) != 1 || err != nil {
		t.Errorf("the VMs are %q, want one: %v", vms, err)
	}
	served := 0
	for pid, comm := range d.processes(t) {
		group := about(pid, "cgroup")
		if group == "" { // it has ended by now
			continue
		}
		if !strings.Contains(group, ":"+cgroupParent+"/"+sandbox+"\n") {
			t.Errorf("process %d %s is in the control groups %s", pid, comm, group)
		}
		if comm == "virtiofsd" {
			served++
		}
	}
	if served == 0 {
		t.Error("no server of a share was seen")
	}
	if out := k.crictl(t, 0, "stats", "--output", "json", "--id", second); !strings.Contains(out, second) ||
		strings.Contains(out, `"workingSetBytes": {
        "value": "0"`) {
		t.Errorf("stats: %s", out)
	}
	k.measured(t, sandbox)
	k.attaches(t, sandbox, pod)
	if b, err := os.ReadFile(k.dir + "/second.log"); !strings.Contains(string(b), "stdout F said\n") {
		t.Errorf("the log is %q: %v", b, err)
	}
	// One that may change its network makes bridges, in its VM.
	admin := k.start(t, sandbox, pod, "admin", "exec sleep 1000000", object{"linux": object{"security_context": object{
		"capabilities": object{"add_capabilities": []string{"NET_ADMIN"}}, "namespace_options": object{"pid": 1}}}})
	exec(admin, "brctl", "addbr", "made")
	hog := k.start(t, sandbox, pod, "hog", "exec dd if=/dev/zero of=/dev/null bs=100M count=1",
		object{"linux": object{"resources": object{"memory_limit_in_bytes": 32 << 20},
			"security_context": object{"run_as_user": object{"value": 1000}, "readonly_rootfs": true,
				"namespace_options": object{"pid": 1}, "seccomp": object{"profile_type": 0}}}})
	until(t, func() error {
		out, err := k.try(0, "inspect", hog)
		if !strings.Contains(out, "OOMKilled") || !strings.Contains(out, `"exitCode": 137`) {
			return fmt.Errorf("what took too much memory: %s, %v", out, err)
		}
		return nil
	})
	k.restart(t)
	if out := k.crictl(t, 0, "inspectp", sandbox); !strings.Contains(out, "SANDBOX_READY") {
		t.Errorf("a containerd that was killed finds the pod so: %s", out)
	}
	k.crictl(t, 0, "stop", second)
	k.crictl(t, 0, "rm", second)
	if out := exec(first, "cat", "/www/file"); out != "of the first" {
		t.Errorf("without the second container, the first one has %q", out)
	}
	k.remove(t, sandbox)
}

// TestPodKilled: where the VM of a pod dies, or its shim, its containers have ended, and the pod is removed as any other.
// Of a shim that was killed containerd's CRI says 255, whatever it was told.
func TestPodKilled(t *testing.T) {
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { testPodKilled(t, needKube(t, handler)) })
	}
}

func testPodKilled(t *testing.T, k kube) {
	for _, tt := range []struct {
		name, code string
		victim     func() []int
	}{
		{"VM", `"exitCode": 137`, func() []int { return k.vm(t) }},
		{"shim", `"exitCode": 255`, func() []int { return k.shims(t) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sandbox, pod := k.runp(t)
			id := k.start(t, sandbox, pod, "only", "sleep 1000000", nil)
			pids := tt.victim()
			if len(pids) != 1 {
				t.Fatalf("the processes are %v, want one", pids)
			}
			if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			until(t, func() error {
				out, err := k.try(0, "inspect", id)
				if !strings.Contains(out, "CONTAINER_EXITED") || !strings.Contains(out, tt.code) {
					return fmt.Errorf("the container: %s, %v", out, err)
				}
				if out, err := k.try(0, "inspectp", sandbox); !strings.Contains(out, "SANDBOX_NOTREADY") {
					return fmt.Errorf("the pod: %s, %v", out, err)
				}
				return nil
			})
			k.remove(t, sandbox)
		})
	}
}

// vm lists the processes of VMs.
func (k kube) vm(t *testing.T) (pids []int) {
	t.Helper()
	found, err := filepath.Glob(k.vms() + "/k8s.io/vms/*/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		b, err := os.ReadFile(name)
		var pid int
		if _, serr := fmt.Sscan(string(b), &pid); err != nil || serr != nil || pid <= 1 {
			t.Fatalf("%s: %q, %v, %v", name, b, err, serr)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestPodKilledStarting kills what takes part while a pod begins that containerd leaves to the shim: nothing is left of
// it, and the next one runs.
func TestPodKilledStarting(t *testing.T) {
	k := needKube(t, "strata-shim")
	for _, who := range []string{vmName, "containerd-shim"} {
		t.Run(who, func(t *testing.T) {
			pod := k.podDocument(t)
			ended := make(chan error, 1)
			go func() {
				ended <- k.call(context.Background(), "runp", "--runtime", k.handler, pod).Run()
			}()
			for killed := false; !killed; time.Sleep(time.Millisecond) {
				for _, comm := range k.processes(t) {
					if strings.HasPrefix(comm, vmName) {
						killed = k.killed(t, who)
						break
					}
				}
				select {
				case err := <-ended:
					t.Fatalf("crictl ended before anything was killed: %v\n%s", err, k.tail())
				default:
				}
			}
			if err := <-ended; err == nil {
				t.Error("the pod has begun")
			}
			k.clean(t)
			released(t, k.addresses())
		})
	}
	sandbox, _ := k.runp(t)
	k.remove(t, sandbox)
}
