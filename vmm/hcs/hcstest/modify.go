package hcstest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// modification is a ModifySettingRequest as it is read.
type modification struct {
	ResourcePath string
	RequestType  hcsschema.RequestType
	Settings     json.RawMessage
	GuestRequest *guestRequest
}

// ModifyComputeSystem implements hcs.API. A request with both halves is all or nothing.
func (s *Service) ModifyComputeSystem(handle hcs.Handle, configuration string) (string, hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"configuration": parse(configuration)})
	return s.call("HcsModifyComputeSystem", y, args, func() (map[string]any, string, hcs.HRESULT) {
		if hr := y.check(hcsschema.StateRunning); hr != ok {
			return nil, "", hr
		}
		if y.inVM() {
			return nil, "", invalidState
		}
		var r modification
		if json.Unmarshal([]byte(configuration), &r) != nil {
			return nil, "", invalidJSON
		}
		hr, message := accessDenied, "the VM may not open "
		if file, may := s.mayOpen(y, r); may {
			hr, message = y.modify(r)
		} else {
			message += file
		}
		if hr == ok {
			return nil, "", ok
		}
		result, err := json.Marshal(hcsschema.ResultError{Error: int32(uint32(hr)), ErrorMessage: message})
		if err != nil {
			result = nil
		}
		return map[string]any{"result": parse(string(result))}, string(result), hr
	})
}

func (y *system) modify(r modification) (hcs.HRESULT, string) {
	if r.GuestRequest != nil && y.doc.VirtualMachine.GuestConnection == nil {
		return invalidState, "the service has no connection to this guest"
	}
	if r.ResourcePath == "" && r.GuestRequest == nil {
		return invalidArgument, "the request is empty"
	}
	guestFirst := r.RequestType == hcsschema.RequestRemove || r.ResourcePath == ""
	if guestFirst && r.GuestRequest != nil {
		if hr, message := y.guest.modify(*r.GuestRequest); hr != ok {
			return hr, message
		}
	}
	if r.ResourcePath != "" {
		if hr, message := y.device(r); hr != ok {
			return hr, message
		}
	}
	if !guestFirst && r.GuestRequest != nil {
		if hr, message := y.guest.modify(*r.GuestRequest); hr != ok {
			undo := r
			undo.RequestType = hcsschema.RequestRemove
			y.device(undo)
			return hr, message
		}
	}
	return ok, ""
}

// device changes the host's half.
func (y *system) device(r modification) (hcs.HRESULT, string) {
	path := r.ResourcePath
	if path == hcsschema.VSMBSharesPath || path == hcsschema.Plan9SharesPath {
		var share struct{ Name string }
		if json.Unmarshal(r.Settings, &share) != nil || share.Name == "" {
			return invalidJSON, "a share without a name"
		}
		path += "#" + share.Name
	}
	if !y.knows(r.ResourcePath) {
		return notFound, "the machine has no such place: " + r.ResourcePath
	}
	_, taken := y.devices[path]
	switch r.RequestType {
	case hcsschema.RequestAdd:
		if taken {
			return alreadyThere, path + " is taken"
		}
		if file, twice := y.opened(r.Settings); twice {
			return hcs.HRESULT(0x80070020), file + " is in use"
		}
		y.devices[path] = r.Settings
	case hcsschema.RequestRemove:
		if !taken {
			return notFound, path + " is empty"
		}
		if target := y.guest.restingOn(path); target != "" {
			return invalidState, path + " is still mounted at " + target
		}
		delete(y.devices, path)
	case hcsschema.RequestUpdate:
		if !taken {
			return notFound, path + " is not there"
		}
		y.devices[path] = r.Settings
	default:
		return invalidArgument, "request type " + string(r.RequestType)
	}
	return ok, ""
}

// knows reports whether the create document has the controller that a path leads to.
func (y *system) knows(path string) bool {
	d := y.doc.VirtualMachine.Devices
	parts := strings.Split(strings.TrimPrefix(path, "VirtualMachine/Devices/"), "/")
	number := func(i int, limit uint64) bool {
		if i >= len(parts) {
			return false
		}
		n, err := strconv.ParseUint(parts[i], 10, 32)
		return err == nil && n < limit
	}
	switch parts[0] {
	case "Scsi":
		if len(parts) != 4 {
			return false
		}
		_, found := d.Scsi[parts[1]]
		return found && number(3, 64)
	case "VirtualPMem":
		return d.VirtualPMem != nil && number(2, uint64(d.VirtualPMem.MaximumCount))
	case "VirtualSmb":
		return d.VirtualSmb != nil
	case "Plan9":
		return d.Plan9 != nil
	}
	return false
}

// opened reports whether a writable disk image would be opened twice.
func (y *system) opened(settings json.RawMessage) (string, bool) {
	var a hcsschema.Attachment
	if json.Unmarshal(settings, &a) != nil || a.Type == "" || a.ReadOnly {
		return "", false
	}
	for _, raw := range y.devices {
		var b hcsschema.Attachment
		if json.Unmarshal(raw, &b) == nil && b.Type != "" && strings.EqualFold(a.Path, b.Path) {
			return a.Path, true
		}
	}
	return "", false
}

// Leftovers names the devices, mounts and systems that are there, apart from what create documents
// brought.
func (s *Service) Leftovers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, y := range s.systems {
		if y.state == hcsschema.StateStopped {
			continue
		}
		if y.inVM() {
			out = append(out, y.id+": a container in "+y.doc.HostingSystemId)
			continue
		}
		fresh := &system{doc: y.doc, devices: map[string]json.RawMessage{}}
		fresh.preset()
		for path := range y.devices {
			if _, preset := fresh.devices[path]; !preset {
				out = append(out, y.id+": "+path)
			}
		}
		for target := range y.guest.mounts {
			out = append(out, y.id+": mount "+target)
		}
	}
	for id, l := range s.layers {
		if l.activated {
			out = append(out, "layer "+id)
		}
	}
	slices.Sort(out)
	return out
}

// Systems names the systems that run or have open handles.
func (s *Service) Systems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, y := range s.systems {
		if y.refs > 0 || y.state != hcsschema.StateStopped {
			out = append(out, y.id+" "+y.state)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
