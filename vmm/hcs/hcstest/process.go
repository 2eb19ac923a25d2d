package hcstest

import (
	"encoding/json"
	"io"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// ProcessParameters are what a process is started with: in the VM itself, or in a container with the
// parameters of one.
type ProcessParameters struct {
	hcsschema.ProcessParameters
	// OciProcess is the process of a Linux container, as the runtime specification writes it.
	OciProcess json.RawMessage
	// Hosted is the document of the container; nil: the process is in the VM.
	Hosted json.RawMessage `json:"-"`
}

// ExecFunc plays a process: it runs until it returns its exit code. Streams that were not asked for
// are empty.
type ExecFunc func(p ProcessParameters, stdin io.Reader, stdout, stderr io.Writer) uint32

// process is a process in a guest.
type process struct {
	id     uint32
	exited bool
	code   uint32
	notify func(hcs.Notification)
	stop   chan struct{} // closed when it is terminated
}

// CreateProcess implements hcs.API.
func (s *Service) CreateProcess(handle hcs.Handle, parameters string) (
	info hcs.ProcessInfo, result string, hr hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"parameters": parse(parameters)})
	result, hr = s.call("HcsCreateProcess", y, args, func() (map[string]any, string, hcs.HRESULT) {
		if hr := y.check(hcsschema.StateRunning); hr != ok {
			return nil, "", hr
		}
		var params ProcessParameters
		if json.Unmarshal([]byte(parameters), &params) != nil {
			return nil, "", invalidJSON
		}
		if y.inVM() {
			hosted, err := json.Marshal(y.doc.HostedSystem)
			if err != nil {
				return nil, "", fail
			}
			params.Hosted = hosted
		}
		p := &process{stop: make(chan struct{})}
		var name string
		info.Process, name = s.newHandle("process")
		p.id = uint32(100 + s.last["process"])
		info.ID = p.id
		s.processes[info.Process] = p
		s.run(p, params, &info)
		return map[string]any{"process": name, "processInformation": map[string]any{"ProcessId": float64(p.id)}}, "", ok
	})
	return info, result, hr
}

// run connects the streams and lets the process run.
func (s *Service) run(p *process, params ProcessParameters, info *hcs.ProcessInfo) {
	var stdin io.Reader = eof{}
	outs := []io.Writer{io.Discard, io.Discard}
	var ends []io.Closer
	if params.CreateStdInPipe {
		r, w := io.Pipe()
		stdin, info.Stdin = r, w
		ends = append(ends, r)
	}
	if params.CreateStdOutPipe {
		r, w := io.Pipe()
		outs[0], info.Stdout = w, r
		ends = append(ends, w)
	}
	if params.CreateStdErrPipe {
		r, w := io.Pipe()
		outs[1], info.Stderr = w, r
		ends = append(ends, w)
	}
	s.wg.Go(func() {
		var code uint32
		ended := make(chan struct{})
		go func() {
			if s.opts.Exec != nil {
				code = s.opts.Exec(params, stdin, outs[0], outs[1])
			}
			close(ended)
		}()
		killed := false
		select {
		case <-ended:
		case <-p.stop:
			killed = true
		}
		for _, e := range ends {
			e.Close()
		}
		s.mu.Lock()
		p.exited = true
		if !killed {
			p.code = code
		} else {
			p.code = 137
		}
		notify := p.notify
		s.mu.Unlock()
		if notify != nil {
			notify(hcs.Notification{Type: hcs.ProcessExited})
		}
	})
}

// eof is an input that has ended.
type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

func (s *Service) onProcess(fn string, handle hcs.Handle, args map[string]any,
	do func(p *process) (map[string]any, hcs.HRESULT)) hcs.HRESULT {
	return s.Record(fn, args, func() (map[string]any, hcs.HRESULT) {
		p := s.processes[handle]
		if p == nil {
			return nil, invalidHandle
		}
		return do(p)
	})
}

func (p *process) kill() hcs.HRESULT {
	if p.exited {
		return 0x8037011F
	}
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	return ok
}

// SignalProcess implements hcs.API: every signal ends the process.
func (s *Service) SignalProcess(handle hcs.Handle, options string) (string, hcs.HRESULT) {
	return "", s.onProcess("HcsSignalProcess", handle, map[string]any{"options": parse(options)},
		func(p *process) (map[string]any, hcs.HRESULT) {
			return nil, p.kill()
		})
}

// TerminateProcess implements hcs.API.
func (s *Service) TerminateProcess(handle hcs.Handle) (string, hcs.HRESULT) {
	return "", s.onProcess("HcsTerminateProcess", handle, nil, func(p *process) (map[string]any, hcs.HRESULT) {
		return nil, p.kill()
	})
}

// ModifyProcess implements hcs.API.
func (s *Service) ModifyProcess(handle hcs.Handle, settings string) (string, hcs.HRESULT) {
	return "", s.onProcess("HcsModifyProcess", handle, map[string]any{"settings": parse(settings)},
		func(*process) (map[string]any, hcs.HRESULT) {
			return nil, ok
		})
}

// GetProcessProperties implements hcs.API.
func (s *Service) GetProcessProperties(handle hcs.Handle) (properties, result string, hr hcs.HRESULT) {
	hr = s.onProcess("HcsGetProcessProperties", handle, nil, func(p *process) (map[string]any, hcs.HRESULT) {
		text, err := json.Marshal(hcsschema.ProcessStatus{ProcessId: p.id, Exited: p.exited, ExitCode: p.code})
		if err != nil {
			return nil, fail
		}
		properties = string(text)
		return map[string]any{"properties": parse(properties)}, ok
	})
	return properties, "", hr
}

// CloseProcess implements hcs.API.
func (s *Service) CloseProcess(handle hcs.Handle) hcs.HRESULT {
	return s.onProcess("HcsCloseProcess", handle, nil, func(*process) (map[string]any, hcs.HRESULT) {
		delete(s.processes, handle)
		return nil, ok
	})
}

// RegisterProcessCallback implements hcs.API. A process that has ended already is told of at once.
func (s *Service) RegisterProcessCallback(handle hcs.Handle, notify func(hcs.Notification)) (
	callback hcs.Handle, hr hcs.HRESULT) {
	exited := false
	hr = s.onProcess("HcsRegisterProcessCallback", handle, nil, func(p *process) (map[string]any, hcs.HRESULT) {
		callback, _ = s.newHandle("callback")
		s.procCalls[callback] = p
		p.notify = notify
		exited = p.exited
		return nil, ok
	})
	if exited {
		notify(hcs.Notification{Type: hcs.ProcessExited})
	}
	return callback, hr
}

// UnregisterProcessCallback implements hcs.API.
func (s *Service) UnregisterProcessCallback(callback hcs.Handle) hcs.HRESULT {
	return s.Record("HcsUnregisterProcessCallback", nil, func() (map[string]any, hcs.HRESULT) {
		p := s.procCalls[callback]
		if p == nil {
			return nil, invalidHandle
		}
		p.notify = nil
		delete(s.procCalls, callback)
		return nil, ok
	})
}
