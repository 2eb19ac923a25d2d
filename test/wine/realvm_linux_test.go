package winetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
	"github.com/stratavm/strata/vmm/qemu"
)

// answers of the service.
const (
	codeOK      hcs.HRESULT = 0
	codeFail    hcs.HRESULT = 0x80004005
	codeInvalid hcs.HRESULT = 0xC037010D
)

// patience bounds what is asked of the VM behind the service. Software emulation is slow.
const patience = 3 * time.Minute

// realVM is a Host Compute Service with a real machine behind it: the service in memory keeps the
// rules and the ledger, and whatever a program has done to its one Linux VM is done to a QEMU machine
// first.
type realVM struct {
	*hcstest.Service
	t     *testing.T
	image vmm.BootImage // for the kernel's arguments: those of the document are for Hyper-V

	mu      sync.Mutex
	handles map[hcs.Handle]string // which system a handle is of
	id      string                // of the VM
	doc     hcsschema.ComputeSystem
	machine *qemu.Machine
}

// CreateComputeSystem remembers the document.
func (r *realVM) CreateComputeSystem(id, configuration string) (hcs.Handle, string, hcs.HRESULT) {
	var doc hcsschema.ComputeSystem
	if err := json.Unmarshal([]byte(configuration), &doc); err != nil {
		return 0, failure(codeInvalid, err), codeInvalid
	}
	handle, result, hr := r.Service.CreateComputeSystem(id, configuration)
	r.mu.Lock()
	defer r.mu.Unlock()
	if handle != 0 {
		r.handles[handle] = id
		if doc.VirtualMachine != nil {
			r.id, r.doc = id, doc
		}
	}
	return handle, result, hr
}

// OpenComputeSystem remembers of what a handle is.
func (r *realVM) OpenComputeSystem(id string) (hcs.Handle, string, hcs.HRESULT) {
	handle, result, hr := r.Service.OpenComputeSystem(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if handle != 0 {
		r.handles[handle] = id
	}
	return handle, result, hr
}

// CloseComputeSystem has the guest forget a container that ended with its last handle.
func (r *realVM) CloseComputeSystem(handle hcs.Handle) hcs.HRESULT {
	hr := r.Service.CloseComputeSystem(handle)
	r.mu.Lock()
	id, vm, m := r.handles[handle], r.id, r.machine
	delete(r.handles, handle)
	r.mu.Unlock()
	if id == vm || m == nil || slices.ContainsFunc(r.Systems(),
		func(s string) bool { return strings.HasPrefix(s, id+" ") }) {
		return hr
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.DeleteContainerState(ctx, strings.TrimPrefix(id, vm+".")); err != nil {
		r.t.Errorf("end of container %s: %v", id, err)
	}
	return hr
}

// isVM reports whether a handle is of the VM, rather than of a container in it.
func (r *realVM) isVM(handle hcs.Handle) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handles[handle] == r.id
}

// StartComputeSystem boots the kernel and the RAM disk that the document names.
func (r *realVM) StartComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	if !r.isVM(handle) {
		return r.Service.StartComputeSystem(handle, options)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	boot := r.doc.VirtualMachine.Chipset.LinuxKernelDirect
	if boot == nil || r.machine != nil {
		return failure(codeFail, errors.New("there is one VM, and it boots a kernel directly")), codeFail
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	topology := r.doc.VirtualMachine.ComputeTopology
	m, err := qemu.Start(ctx, qemu.Config{Dir: r.t.TempDir(), ID: "hcs", Accel: qemu.AccelTCG,
		Kernel: unixPath(boot.KernelFilePath), Initrd: unixPath(boot.InitRdPath), Cmdline: r.image.Cmdline,
		MemoryMiB: int(topology.Memory.SizeInMB), CPUs: int(topology.Processor.Count)})
	if err != nil {
		return failure(codeFail, err), codeFail
	}
	r.machine = m
	return r.Service.StartComputeSystem(handle, options)
}

// ModifyComputeSystem does to the machine what the request says, then enters it in the ledger.
func (r *realVM) ModifyComputeSystem(handle hcs.Handle, configuration string) (string, hcs.HRESULT) {
	c, err := decodeChange(configuration)
	if err != nil {
		return failure(codeInvalid, err), codeInvalid
	}
	m := r.running()
	if m == nil {
		return r.Service.ModifyComputeSystem(handle, configuration) // it knows what to answer
	}
	if !c.Empty() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Apply(ctx, c); err != nil {
			return failure(codeFail, err), codeFail
		}
	}
	return r.Service.ModifyComputeSystem(handle, configuration)
}

// ShutdownComputeSystem asks the guest to power off.
func (r *realVM) ShutdownComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	if !r.isVM(handle) {
		return r.Service.ShutdownComputeSystem(handle, options)
	}
	if err := r.end((*qemu.Machine).Shutdown); err != nil {
		return failure(codeFail, err), codeFail
	}
	return r.Service.ShutdownComputeSystem(handle, options)
}

// TerminateComputeSystem ends the machine.
func (r *realVM) TerminateComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	if !r.isVM(handle) {
		return r.Service.TerminateComputeSystem(handle, options)
	}
	if err := r.end((*qemu.Machine).Terminate); err != nil {
		return failure(codeFail, err), codeFail
	}
	return r.Service.TerminateComputeSystem(handle, options)
}

func (r *realVM) running() *qemu.Machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine
}

func (r *realVM) end(how func(*qemu.Machine, context.Context) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.machine == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := errors.Join(how(r.machine, ctx), r.machine.Close())
	r.machine = nil
	return err
}

// empty checks that the machine has neither devices nor mounts.
func (r *realVM) empty() {
	r.t.Helper()
	m := r.running()
	if m == nil {
		r.t.Fatal("no machine runs")
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	o, err := m.Observe(ctx)
	if err != nil || len(o.Devices)+len(o.Mounts) > 0 {
		r.t.Errorf("in the machine: %v, %v, %v", o.Devices, o.Mounts, err)
	}
}

// abandon ends a machine that the program has left running.
func (r *realVM) abandon() {
	if r.running() != nil {
		r.t.Error("the program left its VM running")
	}
	if err := r.end((*qemu.Machine).Terminate); err != nil {
		r.t.Error(err)
	}
}

// exec is the process of the guest: one in the machine.
func (r *realVM) exec(p hcstest.ProcessParameters, stdin io.Reader, stdout, stderr io.Writer) uint32 {
	const notRun = 125
	m := r.running()
	if m == nil {
		return notRun
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	spec, err := decodeProcess(p)
	if err != nil {
		r.t.Errorf("process parameters: %v", err)
		return notRun
	}
	spec.Stdout, spec.Stderr = stdout, stderr
	if p.CreateStdInPipe {
		spec.Stdin = stdin
	}
	process, err := m.Exec(ctx, spec)
	if err != nil {
		r.t.Logf("program %q: %v", spec.Args, err)
		return notRun
	}
	code, err := process.Wait(ctx)
	if err := errors.Join(err, process.Close()); err != nil {
		r.t.Errorf("program %q: %v", spec.Args, err)
	}
	return uint32(code)
}

// failure is the result document of a failure.
func failure(hr hcs.HRESULT, err error) string {
	text, merr := json.Marshal(hcsschema.ResultError{Error: int32(uint32(hr)), ErrorMessage: err.Error()})
	if merr != nil {
		return ""
	}
	return string(text)
}
