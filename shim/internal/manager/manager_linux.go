// Package manager starts shims and takes away what is left of those that were killed.
package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/shim/internal/cgroup"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/rootfs"
	"github.com/stratavm/strata/shim/internal/task"
	"github.com/stratavm/strata/uvm"
)

// Manager is what containerd executes the program for, beside serving tasks.
type Manager struct {
	Version string
}

// Name is the name by which containerd knows the runtime.
func (Manager) Name() string { return "io.containerd.strata.v1" }

// Start starts a shim for a task, in the folder of whose bundle this program runs, and returns how to reach it.
func (Manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	id := params.GetInstanceID()
	bundle, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	g, err := readGroup(bundle, id)
	if err != nil {
		return nil, err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = filepath.Join(defaults.DefaultStateDir, "s")
	}
	address, err := shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), g.id, false)
	if err != nil {
		return nil, err
	}
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
	err = result.AddExtension(&types.MountCapabilities{Types: rootfs.DiskTypes, Transforms: rootfs.Transforms})
	if err != nil {
		return nil, err
	}
	if g.id != id && shim.CanConnect(address) {
		return result, nil
	}
	socket, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("the shim's socket: %w", err)
	}
	socket.SetUnlinkOnClose(false) // the shim has it
	defer socket.Close()
	f, err := socket.File()
	if err != nil {
		return nil, errors.Join(err, shim.RemoveSocket(address))
	}
	defer f.Close()
	cmd := exec.Command(self, "-namespace", ns, "-id", id, "-address", params.GetContainerdGrpcAddress())
	if params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG {
		cmd.Args = append(cmd.Args, "-debug")
	}
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, shim.RemoveSocket(address))
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		return nil, errors.Join(fmt.Errorf("the shim: %w", err), cmd.Process.Kill(), shim.RemoveSocket(address))
	}
	return result, nil
}

// group is what containers are together in that have one shim and one VM.
type group struct {
	id  string // that of the sandbox of a pod, else the container's own
	pod bool   // others may be in it
}

// readGroup finds the group of the container of a bundle.
func readGroup(bundle, id string) (group, error) {
	b, err := regfile.Read(filepath.Join(bundle, "config.json"), task.MaxDocument)
	if errors.Is(err, os.ErrNotExist) { // then it may be a pod's
		return group{id: id, pod: true}, nil
	}
	var doc struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if err != nil {
		return group{}, fmt.Errorf("the container's document: %w", err)
	}
	sandbox, _ := pod.Sandbox(doc.Annotations)
	return group{id: cmp.Or(sandbox, id), pod: sandbox != ""}, nil
}

// listen makes the socket of a shim, in the place of one that a killed shim left.
func listen(address string) (*net.UnixListener, error) {
	socket, err := shim.NewSocket(address)
	if err == nil || !shim.SocketEaddrinuse(err) {
		return socket, err
	}
	if shim.CanConnect(address) {
		return nil, fmt.Errorf("another shim serves this task: %w", err)
	}
	if err := shim.RemoveSocket(address); err != nil {
		return nil, err
	}
	return shim.NewSocket(address)
}

// bootstrapFile is where containerd keeps in a bundle how to reach its shim.
const bootstrapFile = "bootstrap.json"

// addressOf is where the shim of a bundle listens; empty: none was started.
func addressOf(bundle string) (string, error) {
	b, err := regfile.ReadState(filepath.Join(bundle, bootstrapFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	var how bootapi.BootstrapResult
	if err == nil {
		err = json.Unmarshal(b, &how) // which is how containerd writes it
	}
	if err != nil {
		return "", fmt.Errorf("the socket of the shim: %w", err)
	}
	return how.Address, nil
}

// Times. containerd gives what takes away the rest of a task five seconds.
const (
	stopTime   = 4500 * time.Millisecond // all of it
	endTime    = time.Second             // how long a shim may take to end that was told so
	lastTime   = 3500 * time.Millisecond // and when the pod itself has ended, with which it ends the VM and tells its events
	answerTime = 2500 * time.Millisecond // how long one that lives takes to answer from memory, on a host that is busy
	lockTime   = 500 * time.Millisecond  // how long one that ends keeps its VM
)

// serves reports whether a shim answers at an address, and goes on to listen for a time.
func serves(ctx context.Context, address, id string, end time.Duration) bool {
	if address == "" || !answers(ctx, address, id) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, end)
	defer cancel()
	for shim.CanConnect(address) {
		select {
		case <-ctx.Done():
			return true
		case <-time.After(10 * time.Millisecond):
		}
	}
	return false
}

// answers reports whether a shim answers at an address: one that was stopped, or hangs, does not.
func answers(ctx context.Context, address, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := shim.AnonDialer(address, answerTime)
	if err != nil {
		return false
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	_, err = taskapi.NewTTRPCTaskClient(client).Connect(ctx, &taskapi.ConnectRequest{ID: id})
	return err == nil
}

// remove takes away a VM, and a shim that does not let go of it.
func remove(ctx context.Context, dir string) error {
	return removeFrom(ctx, func(ctx context.Context) error { return pod.Remove(ctx, dir) },
		func() error { return killHolder(dir) })
}

// removeFrom removes, and where that takes long once more: what is locked is taken from its holder before.
func removeFrom(ctx context.Context, remove func(context.Context) error, killHolder func() error) error {
	limited, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	err := remove(limited)
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, uvm.ErrLocked) {
		if kerr := killHolder(); kerr != nil {
			return errors.Join(err, kerr)
		}
	}
	return remove(ctx) // or a process takes its time to end
}

// killHolder kills the shim that has the VM of a state directory. Another program that has it is left alone, and where
// none is found by now it is no error.
func killHolder(dir string) error {
	text, err := lockfile.ReadFile(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	name := strings.TrimSpace(string(text))
	if name == "" { // another has taken it just now, or could not write its number
		return nil
	}
	pid, err := strconv.Atoi(name)
	if err != nil {
		return fmt.Errorf("the holder of %s: %w", dir, err)
	}
	fd, err := unix.PidfdOpen(pid, 0) // from then on the number is that of one process
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the holder of %s: process %d: %w", dir, pid, err)
	}
	defer unix.Close(fd)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err == nil && strings.TrimSuffix(program, " (deleted)") != self { // deleted: there is a newer one by now
		err = fmt.Errorf("%s is no shim", program)
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	if err != nil {
		return fmt.Errorf("the holder of %s: process %d: %w", dir, pid, err)
	}
	return nil
}

// removeSocket removes the socket of a shim. It is idempotent.
func removeSocket(address string) error {
	if address == "" {
		return nil
	}
	if err := shim.RemoveSocket(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the socket of the shim: %w", err)
	}
	return nil
}

// removeCgroup removes the control group that was made for a VM that has ended, and whose shim may just be ending. One
// that others are in by now is theirs.
func removeCgroup(ctx context.Context, bundle string) error {
	name, err := task.ReadCgroup(bundle)
	if err != nil || name == "" {
		return err
	}
	if err := cgroup.Remove(ctx, name); !errors.Is(err, cgroup.ErrInUse) {
		return err
	}
	return nil
}

// Stop takes away what is left of a task: its VM, its mounts, its control group and the shim's socket. This program runs
// in the folder of the task's bundle if it is not told another. It is idempotent, and needs nobody's help.
func (Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return shim.StopStatus{}, err
	}
	bundle := ""
	if o, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok {
		bundle = o.BundlePath // which may be gone
	}
	if bundle == "" {
		if bundle, err = os.Getwd(); err != nil {
			return shim.StopStatus{}, err
		}
	}
	g, err := readGroup(bundle, id)
	if err != nil { // with which nothing was started
		g = group{id: id}
	}
	dir, err := pod.Dir(ns, g.id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	end := endTime
	if g.id == id {
		end = lastTime
	}
	address, err := addressOf(bundle)
	over := err == nil && !(g.pod && serves(ctx, address, g.id, end)) // else other containers of the pod are in the VM
	if over {
		err = errors.Join(remove(ctx, dir), removeSocket(address))
	}
	err = errors.Join(err, rootfs.Unmount(bundle))
	if over { // last, as it may take what time there is
		err = errors.Join(err, removeCgroup(ctx, bundle))
	}
	if err != nil {
		return shim.StopStatus{}, err
	}
	return task.ReadExit(bundle)
}

// mountsAnnotation says to containerd 2.2 and 2.3 what Start says to later ones.
const mountsAnnotation = "containerd.io/runtime-allow-mounts"

// Info describes the runtime.
func (m Manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	mounts := slices.Clone(rootfs.DiskTypes)
	for _, t := range rootfs.Transforms {
		mounts = append(mounts, t+"/*")
	}
	return &types.RuntimeInfo{Name: m.Name(), Version: &types.RuntimeVersion{Version: m.Version},
		Annotations: map[string]string{mountsAnnotation: strings.Join(mounts, ",")}}, nil
}
