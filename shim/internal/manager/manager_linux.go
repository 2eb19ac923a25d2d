// Package manager starts shims, and cleans up after those that were killed.
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
	"github.com/stratavm/strata/shim/internal/options"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/shim/internal/rootfs"
	"github.com/stratavm/strata/shim/internal/task"
	"github.com/stratavm/strata/uvm"
)

// Manager implements the commands for which containerd runs the shim binary: start, delete and info.
type Manager struct {
	Version string
}

// Name is the name by which containerd knows the runtime.
func (Manager) Name() string { return "io.containerd.strata.v1" }

// Start returns the address of the shim for a task. A container of a pod joins the pod's shim if that runs; else Start
// starts one. The working directory must be the task's bundle.
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
	if err := options.Keep(bundle, params); err != nil {
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
	socket.SetUnlinkOnClose(false) // the shim inherits it
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

// group identifies the containers that share a shim and a VM: a pod, or a single container.
type group struct {
	id  string // the id of the pod's sandbox, else the container's own
	pod bool   // it may have several containers
}

// readGroup returns the group of a bundle's container.
func readGroup(bundle, id string) (group, error) {
	b, err := regfile.Read(filepath.Join(bundle, "config.json"), task.MaxDocument)
	if errors.Is(err, os.ErrNotExist) { // the bundle of a sandbox has none before it is started
		return group{id: id, pod: true}, nil
	}
	var doc struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if err != nil {
		return group{}, fmt.Errorf("config.json: %w", err)
	}
	sandbox, _ := pod.Sandbox(doc.Annotations)
	return group{id: cmp.Or(sandbox, id), pod: sandbox != ""}, nil
}

// listen creates the socket of a shim. It replaces a socket that a killed shim left.
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

// bootstrapFile is the file of a bundle in which containerd keeps its shim's BootstrapResult.
const bootstrapFile = "bootstrap.json"

// addressOf returns the address of a bundle's shim; empty if none was started.
func addressOf(bundle string) (string, error) {
	b, err := regfile.ReadState(filepath.Join(bundle, bootstrapFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	var how bootapi.BootstrapResult
	if err == nil {
		err = json.Unmarshal(b, &how) // containerd writes it by encoding/json, not protojson
	}
	if err != nil {
		return "", fmt.Errorf("the socket of the shim: %w", err)
	}
	return how.Address, nil
}

const (
	stopTimeout   = 4500 * time.Millisecond // all of Stop, for which containerd waits five seconds
	endTimeout    = time.Second             // for a shim that was told to exit
	podEndTimeout = 3500 * time.Millisecond // the same if the pod has ended: it also ends the VM and publishes events
	answerTimeout = 2500 * time.Millisecond // for a live shim to answer Connect on a busy host
	lockTimeout   = 500 * time.Millisecond  // for an exiting shim to release the VM
)

// serves reports whether a shim answers at an address and does not stop listening within end.
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

// answers reports whether a shim answers at an address within answerTimeout. A stopped or hanging one does not.
func answers(ctx context.Context, address, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := shim.AnonDialer(address, answerTimeout)
	if err != nil {
		return false
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	_, err = taskapi.NewTTRPCTaskClient(client).Connect(ctx, &taskapi.ConnectRequest{ID: id})
	return err == nil
}

// remove removes the VM of a state directory. A shim that keeps the VM locked for longer than lockTimeout is killed.
func remove(ctx context.Context, dir string) error {
	return removeFrom(ctx, func(ctx context.Context) error { return pod.Remove(ctx, dir) },
		func() error { return killHolder(dir) })
}

// removeFrom calls remove. If that fails by its timeout, it calls remove again without one, and before that killHolder
// if the VM is locked.
func removeFrom(ctx context.Context, remove func(context.Context) error, killHolder func() error) error {
	limited, cancel := context.WithTimeout(ctx, lockTimeout)
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
	return remove(ctx)
}

// killHolder kills the shim that holds the lock of a VM's state directory. A lock held by another program is an error;
// a lock that nobody holds any more is none.
func killHolder(dir string) error {
	text, err := lockfile.ReadFile(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	name := strings.TrimSpace(string(text))
	if name == "" { // the holder has not yet written its PID, or could not
		return nil
	}
	pid, err := strconv.Atoi(name)
	if err != nil {
		return fmt.Errorf("the holder of %s: %w", dir, err)
	}
	fd, err := unix.PidfdOpen(pid, 0) // guards against reuse of the PID
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
	if err == nil && strings.TrimSuffix(program, " (deleted)") != self { // deleted: replaced by an upgrade
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

// removeCgroup removes the control group that was created for a VM that has ended. It waits for the shim, which may
// still be exiting, to leave it. A group that other processes use is kept.
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

// Stop removes what is left of a task: its VM, mounts, control group and the shim's socket. The bundle is that of the
// shim.Opts in ctx, or the working directory. It is idempotent and needs neither the shim nor containerd.
func (Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return shim.StopStatus{}, err
	}
	bundle := ""
	if o, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok {
		bundle = o.BundlePath // may not exist any more
	}
	if bundle == "" {
		if bundle, err = os.Getwd(); err != nil {
			return shim.StopStatus{}, err
		}
	}
	g, err := readGroup(bundle, id)
	if err != nil { // Start has refused it
		g = group{id: id}
	}
	dir, err := pod.Dir(ns, g.id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	end := endTimeout
	if g.id == id {
		end = podEndTimeout
	}
	address, err := addressOf(bundle)
	over := err == nil && !(g.pod && serves(ctx, address, g.id, end)) // else the VM has other containers of the pod
	if over {
		err = errors.Join(remove(ctx, dir), removeSocket(address))
	}
	err = errors.Join(err, rootfs.Unmount(bundle))
	if over { // last, as it may use up the remaining time
		err = errors.Join(err, removeCgroup(ctx, bundle))
	}
	if err != nil {
		return shim.StopStatus{}, err
	}
	return task.ReadExit(bundle)
}

// mountsAnnotation tells containerd 2.3 the mount types that Start returns to later versions.
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
