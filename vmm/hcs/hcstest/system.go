package hcstest

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// system is a compute system.
type system struct {
	id        string
	name      string // as traces call the handle
	doc       hcsschema.ComputeSystem
	state     string
	refs      int // open handles
	watchers  []*watcher
	completed *hcs.Notification // create notification that waits for a callback
	devices   map[string]json.RawMessage
	guest     *guest
}

// watcher is who registered for the notifications of a system.
type watcher struct {
	system *system
	name   string // as traces call the callback
	notify func(hcs.Notification)
}

// inVM reports whether this is a container in a VM rather than a VM.
func (y *system) inVM() bool { return y.doc.HostingSystemId != "" }

func (y *system) linux() bool {
	vm := y.doc.VirtualMachine
	return vm == nil || vm.Devices == nil || vm.Devices.VirtualSmb == nil
}

// CreateComputeSystem implements hcs.API.
func (s *Service) CreateComputeSystem(id, configuration string) (handle hcs.Handle, result string, hr hcs.HRESULT) {
	args := map[string]any{"id": id, "configuration": parse(configuration), "identity": float64(0)}
	result, hr = s.call("HcsCreateComputeSystem", nil, args, func() (map[string]any, string, hcs.HRESULT) {
		if s.find(id) != nil {
			return nil, "", systemExists
		}
		y := &system{id: id, state: hcsschema.StateCreated, refs: 1, devices: map[string]json.RawMessage{}}
		if json.Unmarshal([]byte(configuration), &y.doc) != nil {
			return nil, "", invalidJSON
		}
		if y.inVM() {
			host := s.find(y.doc.HostingSystemId)
			if host == nil || host.state != hcsschema.StateRunning {
				return nil, "", noSystem
			}
			if y.doc.HostedSystem == nil || host.inVM() || host.doc.VirtualMachine.GuestConnection == nil {
				return nil, "", invalidJSON
			}
		} else if y.doc.VirtualMachine == nil || y.doc.VirtualMachine.Devices == nil {
			return nil, "", invalidJSON
		} else {
			y.preset()
		}
		y.guest = newGuest(s, y)
		handle, y.name = s.newHandle("system")
		s.systems[handle] = y
		out := map[string]any{"computeSystem": y.name}
		if s.opts.Synchronous {
			return out, "", ok
		}
		status := s.verdict("(create-completed)", nil)
		y.completed = &hcs.Notification{Type: hcs.SystemCreateCompleted, Status: status.HR, Data: status.Result}
		return out, "", hcs.Pending
	})
	return handle, result, hr
}

// preset puts the devices of the create document into the ledger.
func (y *system) preset() {
	d := y.doc.VirtualMachine.Devices
	put := func(path string, v any) {
		raw, err := json.Marshal(v)
		if err == nil {
			y.devices[path] = raw
		}
	}
	for controller, c := range d.Scsi {
		for lun, a := range c.Attachments {
			put("VirtualMachine/Devices/Scsi/"+controller+"/Attachments/"+lun, a)
		}
	}
	if d.VirtualPMem != nil {
		for slot, p := range d.VirtualPMem.Devices {
			put("VirtualMachine/Devices/VirtualPMem/Devices/"+slot, p)
		}
	}
	if d.VirtualSmb != nil {
		for _, share := range d.VirtualSmb.Shares {
			put(hcsschema.VSMBSharesPath+"#"+share.Name, share)
		}
	}
}

func (s *Service) find(id string) *system {
	for _, y := range s.systems {
		if y.id == id && y.state != hcsschema.StateStopped {
			return y
		}
	}
	return nil
}

// OpenComputeSystem implements hcs.API.
func (s *Service) OpenComputeSystem(id string) (handle hcs.Handle, result string, hr hcs.HRESULT) {
	result, hr = s.call("HcsOpenComputeSystem", nil, map[string]any{"id": id},
		func() (map[string]any, string, hcs.HRESULT) {
			y := s.find(id)
			if y == nil {
				return nil, "", noSystem
			}
			y.refs++
			handle, _ = s.newHandle("system")
			s.systems[handle] = y
			return map[string]any{"computeSystem": y.name}, "", ok
		})
	return handle, result, hr
}

// about finds the system of a handle; args get its name.
func (s *Service) about(handle hcs.Handle, args map[string]any) (*system, map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	y := s.systems[handle]
	all := map[string]any{"computeSystem": "<closed>"}
	if y != nil {
		all["computeSystem"] = y.name
	}
	maps.Copy(all, args)
	return y, all
}

// CloseComputeSystem implements hcs.API.
func (s *Service) CloseComputeSystem(handle hcs.Handle) hcs.HRESULT {
	y, args := s.about(handle, nil)
	last := false
	_, hr := s.call("HcsCloseComputeSystem", nil, args, func() (map[string]any, string, hcs.HRESULT) {
		if y == nil {
			return nil, "", invalidHandle
		}
		delete(s.systems, handle)
		y.refs--
		last = y.refs == 0 && y.doc.ShouldTerminateOnLastHandleClosed
		if y.refs == 0 && !last && y.state == hcsschema.StateRunning {
			// The system lives on without handles; keep it where find looks.
			s.handle++
			s.systems[s.handle] = y
		}
		return nil, "", ok
	})
	if last {
		s.kill(y)
	}
	return hr
}

// StartComputeSystem implements hcs.API.
func (s *Service) StartComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"options": options})
	return s.call("HcsStartComputeSystem", y, args, func() (map[string]any, string, hcs.HRESULT) {
		if hr := y.check(hcsschema.StateCreated); hr != ok {
			return nil, "", hr
		}
		y.state = hcsschema.StateRunning
		boot := func() {
			if !y.inVM() && y.doc.VirtualMachine.GuestConnection == nil && s.opts.Sockets != nil {
				s.wg.Go(func() { y.guest.boot(s) })
			}
		}
		if s.opts.Synchronous {
			boot()
			return nil, "", ok
		}
		s.post(y, hcs.Notification{Type: hcs.SystemStartCompleted}, boot)
		return nil, "", hcs.Pending
	})
}

// check says whether a system is in a state; the service is locked.
func (y *system) check(state string) hcs.HRESULT {
	switch {
	case y == nil:
		return invalidHandle
	case y.state == hcsschema.StateStopped && state != hcsschema.StateStopped:
		return stopped
	case y.state != state:
		return invalidState
	}
	return ok
}

// post delivers a notification in the background, then does what comes after it.
func (s *Service) post(y *system, n hcs.Notification, then func()) {
	s.wg.Go(func() {
		s.deliver(y, n)
		if then != nil {
			then()
		}
	})
}

func (s *Service) deliver(y *system, n hcs.Notification) {
	s.mu.Lock()
	watchers := slices.Clone(y.watchers)
	for range watchers {
		s.trace = append(s.trace, &Call{Seq: len(s.trace) + 1, Step: s.step, Fn: "(notification)",
			Args: map[string]any{"type": n.Type.String(), "status": hex(n.Status)}})
	}
	s.mu.Unlock()
	for _, w := range watchers {
		w.notify(n)
	}
}

// Kill ends a system as if its VM had crashed.
func (s *Service) Kill(id string) {
	s.mu.Lock()
	y := s.find(id)
	s.mu.Unlock()
	if y != nil {
		s.kill(y)
	}
}

// Disconnect tells everybody that the service went away.
func (s *Service) Disconnect() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.systems))
	s.mu.Unlock()
	for _, y := range all {
		s.deliver(y, hcs.Notification{Type: hcs.ServiceDisconnect})
	}
}

// stop ends a system and returns the containers in it, which end too; the service is locked.
func (s *Service) stop(y *system) []*system {
	was := y.state
	y.state = hcsschema.StateStopped
	y.guest.halt()
	if y.inVM() && was != hcsschema.StateStopped {
		if host := s.find(y.doc.HostingSystemId); host != nil {
			host.guest.ended(y)
		}
	}
	var ended []*system
	for _, c := range s.systems {
		if c.doc.HostingSystemId == y.id && c.state != hcsschema.StateStopped {
			c.state = hcsschema.StateStopped
			ended = append(ended, c)
		}
	}
	return ended
}

func (s *Service) kill(y *system) {
	s.mu.Lock()
	was := y.state
	ended := s.stop(y)
	s.mu.Unlock()
	for _, c := range ended {
		s.deliver(c, hcs.Notification{Type: hcs.SystemExited})
	}
	if was != hcsschema.StateStopped {
		s.deliver(y, hcs.Notification{Type: hcs.SystemExited})
	}
}

// TerminateComputeSystem implements hcs.API.
func (s *Service) TerminateComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	return s.end("HcsTerminateComputeSystem", handle, options)
}

// ShutdownComputeSystem implements hcs.API: the guest always complies.
func (s *Service) ShutdownComputeSystem(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	return s.end("HcsShutdownComputeSystem", handle, options)
}

func (s *Service) end(fn string, handle hcs.Handle, options string) (string, hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"options": options})
	return s.call(fn, y, args, func() (map[string]any, string, hcs.HRESULT) {
		if y == nil {
			return nil, "", invalidHandle
		}
		if y.state != hcsschema.StateStopped {
			for _, c := range append(s.stop(y), y) {
				s.post(c, hcs.Notification{Type: hcs.SystemExited}, nil)
			}
		}
		return nil, "", hcs.Pending
	})
}

// RegisterComputeSystemCallback implements hcs.API.
func (s *Service) RegisterComputeSystemCallback(handle hcs.Handle, notify func(hcs.Notification)) (
	callback hcs.Handle, hr hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"callback": "<function>"})
	_, hr = s.call("HcsRegisterComputeSystemCallback", y, args, func() (map[string]any, string, hcs.HRESULT) {
		if y == nil {
			return nil, "", invalidHandle
		}
		w := &watcher{system: y, notify: notify}
		callback, w.name = s.newHandle("callback")
		y.watchers = append(y.watchers, w)
		s.callbacks[callback] = w
		if n := y.completed; n != nil {
			y.completed = nil
			s.post(y, *n, nil)
		}
		return map[string]any{"callbackHandle": w.name}, "", ok
	})
	return callback, hr
}

// UnregisterComputeSystemCallback implements hcs.API.
func (s *Service) UnregisterComputeSystemCallback(callback hcs.Handle) hcs.HRESULT {
	s.mu.Lock()
	w := s.callbacks[callback]
	args := map[string]any{"callbackHandle": "<closed>"}
	if w != nil {
		args["callbackHandle"] = w.name
	}
	s.mu.Unlock()
	_, hr := s.call("HcsUnregisterComputeSystemCallback", nil, args, func() (map[string]any, string, hcs.HRESULT) {
		if w == nil {
			return nil, "", invalidHandle
		}
		delete(s.callbacks, callback)
		w.system.watchers = slices.DeleteFunc(w.system.watchers, func(o *watcher) bool { return o == w })
		return nil, "", ok
	})
	return hr
}
