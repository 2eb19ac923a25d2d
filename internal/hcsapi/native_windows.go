package hcsapi

import (
	"fmt"
	"io"
	"sync"
	"unsafe"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// Native is the Host Compute Service of this computer. It fails where vmcompute.dll is missing: the
// feature "Containers" or "Hyper-V" is not installed.
func Native() (API, error) {
	dll := windows.NewLazySystemDLL("vmcompute.dll")
	if err := dll.Load(); err != nil {
		return nil, fmt.Errorf("load vmcompute.dll (install the Windows features Containers and Hyper-V): %w", err)
	}
	return &native{dll: dll}, nil
}

// native calls vmcompute.dll.
type native struct{ dll *windows.LazyDLL }

// call calls an export. Pointers among args have to be converted in the call itself, as for [Call].
//
//go:uintptrescapes
func (n *native) call(name string, args ...uintptr) HRESULT { return Call(n.dll, name, args...) }

// onSystem calls an export that takes a handle and a text and returns a result document.
func (n *native) onSystem(name string, h Handle, argument string) (string, HRESULT) {
	p, hr := Text(argument)
	if hr != OK {
		return "", hr
	}
	var result *uint16
	hr = n.call(name, uintptr(h), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&result)))
	return Taken(result), hr
}

// query calls an export that takes an optional handle and a text and returns an answer and a result.
func (n *native) query(name string, h Handle, argument string) (answer, result string, hr HRESULT) {
	p, hr := Text(argument)
	if hr != OK {
		return "", "", hr
	}
	var a, r *uint16
	if h == 0 {
		hr = n.call(name, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&r)))
	} else {
		hr = n.call(name, uintptr(h), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&r)))
	}
	return Taken(a), Taken(r), hr
}

func (n *native) CreateComputeSystem(id, configuration string) (Handle, string, HRESULT) {
	pid, hr := Text(id)
	if hr != OK {
		return 0, "", hr
	}
	doc, hr := Text(configuration)
	if hr != OK {
		return 0, "", hr
	}
	var system Handle
	var result *uint16
	hr = n.call("HcsCreateComputeSystem", uintptr(unsafe.Pointer(pid)), uintptr(unsafe.Pointer(doc)), 0,
		uintptr(unsafe.Pointer(&system)), uintptr(unsafe.Pointer(&result)))
	return system, Taken(result), hr
}

func (n *native) OpenComputeSystem(id string) (Handle, string, HRESULT) {
	pid, hr := Text(id)
	if hr != OK {
		return 0, "", hr
	}
	var system Handle
	var result *uint16
	hr = n.call("HcsOpenComputeSystem", uintptr(unsafe.Pointer(pid)), uintptr(unsafe.Pointer(&system)),
		uintptr(unsafe.Pointer(&result)))
	return system, Taken(result), hr
}

func (n *native) CloseComputeSystem(system Handle) HRESULT {
	return n.call("HcsCloseComputeSystem", uintptr(system))
}

func (n *native) StartComputeSystem(system Handle, options string) (string, HRESULT) {
	return n.onSystem("HcsStartComputeSystem", system, options)
}

func (n *native) ShutdownComputeSystem(system Handle, options string) (string, HRESULT) {
	return n.onSystem("HcsShutdownComputeSystem", system, options)
}

func (n *native) TerminateComputeSystem(system Handle, options string) (string, HRESULT) {
	return n.onSystem("HcsTerminateComputeSystem", system, options)
}

func (n *native) ModifyComputeSystem(system Handle, configuration string) (string, HRESULT) {
	return n.onSystem("HcsModifyComputeSystem", system, configuration)
}

func (n *native) GetComputeSystemProperties(system Handle, query string) (string, string, HRESULT) {
	return n.query("HcsGetComputeSystemProperties", system, query)
}

func (n *native) EnumerateComputeSystems(query string) (string, string, HRESULT) {
	return n.query("HcsEnumerateComputeSystems", 0, query)
}

func (n *native) GetServiceProperties(query string) (string, string, HRESULT) {
	return n.query("HcsGetServiceProperties", 0, query)
}

func (n *native) RegisterComputeSystemCallback(system Handle, notify func(Notification)) (Handle, HRESULT) {
	return n.register("HcsRegisterComputeSystemCallback", system, notify)
}

func (n *native) UnregisterComputeSystemCallback(callback Handle) HRESULT {
	return n.unregister("HcsUnregisterComputeSystemCallback", callback)
}

func (n *native) RegisterProcessCallback(process Handle, notify func(Notification)) (Handle, HRESULT) {
	return n.register("HcsRegisterProcessCallback", process, notify)
}

func (n *native) UnregisterProcessCallback(callback Handle) HRESULT {
	return n.unregister("HcsUnregisterProcessCallback", callback)
}

// watcher is one registration for notifications.
type watcher struct {
	notify  func(Notification)
	handle  Handle
	running sync.WaitGroup // notifications under way; none begins once the watcher is out of the table
}

// watchers are the registrations of this process, by the number that the service gets as context, because it must not
// get a Go pointer. The table is global because there is one callback for the whole process: windows.NewCallback cannot
// be freed.
var watchers struct {
	sync.RWMutex
	last    uintptr
	byIndex map[uintptr]*watcher
}

// entry is the callback, which the service calls on its own threads.
var entry = sync.OnceValue(func() uintptr { return windows.NewCallback(notified) })

func notified(kind uint32, context uintptr, status uint32, data *uint16) uintptr {
	watchers.RLock()
	w := watchers.byIndex[context]
	if w != nil {
		w.running.Add(1)
	}
	watchers.RUnlock()
	if w != nil {
		defer w.running.Done()
		n := Notification{Type: NotificationType(kind), Status: HRESULT(status)}
		if data != nil {
			n.Data = windows.UTF16PtrToString(data) // the service owns and frees data
		}
		w.notify(n)
	}
	return 0
}

func (n *native) register(name string, about Handle, notify func(Notification)) (Handle, HRESULT) {
	w := &watcher{notify: notify}
	watchers.Lock()
	watchers.last++
	index := watchers.last
	if watchers.byIndex == nil {
		watchers.byIndex = map[uintptr]*watcher{}
	}
	watchers.byIndex[index] = w
	watchers.Unlock()
	var callback Handle
	hr := n.call(name, uintptr(about), entry(), index, uintptr(unsafe.Pointer(&callback)))
	watchers.Lock()
	defer watchers.Unlock()
	if hr.Failed() {
		delete(watchers.byIndex, index)
		return 0, hr
	}
	w.handle = callback
	return callback, hr
}

// unregister ends a registration and waits for notifications under way, without holding the table's lock. After it has
// returned, no thread of the service runs this program's code for the registration, even if the service returned an
// error.
func (n *native) unregister(name string, callback Handle) HRESULT {
	hr := n.call(name, uintptr(callback))
	var ended []*watcher
	watchers.Lock()
	for index, w := range watchers.byIndex {
		if w.handle == callback {
			delete(watchers.byIndex, index)
			ended = append(ended, w)
		}
	}
	watchers.Unlock()
	for _, w := range ended {
		w.running.Wait()
	}
	return hr
}

// processInformation is HCS_PROCESS_INFORMATION, which HcsCreateProcess fills in.
type processInformation struct {
	processID uint32
	_         uint32
	stdin     windows.Handle
	stdout    windows.Handle
	stderr    windows.Handle
}

func (n *native) CreateProcess(system Handle, parameters string) (ProcessInfo, string, HRESULT) {
	p, hr := Text(parameters)
	if hr != OK {
		return ProcessInfo{}, "", hr
	}
	var raw processInformation
	var info ProcessInfo
	var result *uint16
	hr = n.call("HcsCreateProcess", uintptr(system), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&raw)),
		uintptr(unsafe.Pointer(&info.Process)), uintptr(unsafe.Pointer(&result)))
	if hr.Failed() {
		return ProcessInfo{}, Taken(result), hr
	}
	info.ID = raw.processID
	for _, s := range []struct {
		h   windows.Handle
		set func(io.ReadWriteCloser)
	}{
		{raw.stdin, func(f io.ReadWriteCloser) { info.Stdin = f }},
		{raw.stdout, func(f io.ReadWriteCloser) { info.Stdout = f }},
		{raw.stderr, func(f io.ReadWriteCloser) { info.Stderr = f }},
	} {
		if s.h == 0 {
			continue
		}
		f, err := winio.NewOpenFile(s.h)
		if err != nil {
			windows.CloseHandle(s.h)
			continue
		}
		s.set(f)
	}
	return info, Taken(result), hr
}

func (n *native) SignalProcess(process Handle, options string) (string, HRESULT) {
	return n.onSystem("HcsSignalProcess", process, options)
}

func (n *native) ModifyProcess(process Handle, settings string) (string, HRESULT) {
	return n.onSystem("HcsModifyProcess", process, settings)
}

func (n *native) TerminateProcess(process Handle) (string, HRESULT) {
	var result *uint16
	hr := n.call("HcsTerminateProcess", uintptr(process), uintptr(unsafe.Pointer(&result)))
	return Taken(result), hr
}

func (n *native) GetProcessProperties(process Handle) (string, string, HRESULT) {
	var properties, result *uint16
	hr := n.call("HcsGetProcessProperties", uintptr(process), uintptr(unsafe.Pointer(&properties)),
		uintptr(unsafe.Pointer(&result)))
	return Taken(properties), Taken(result), hr
}

func (n *native) CloseProcess(process Handle) HRESULT {
	return n.call("HcsCloseProcess", uintptr(process))
}
