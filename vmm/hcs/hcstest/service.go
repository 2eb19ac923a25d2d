package hcstest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// Codes that the service answers with.
const (
	ok              hcs.HRESULT = 0
	fail            hcs.HRESULT = 0x80004005
	invalidHandle   hcs.HRESULT = 0x80070006
	accessDenied    hcs.HRESULT = 0x80070005
	invalidArgument hcs.HRESULT = 0x80070057
	alreadyThere    hcs.HRESULT = 0x800700B7
	notFound        hcs.HRESULT = 0x80070490
	notReady        hcs.HRESULT = 0x80070015
	noDevice        hcs.HRESULT = 0x80070037
	invalidState    hcs.HRESULT = 0xC0370105
	invalidJSON     hcs.HRESULT = 0xC037010D
	noSystem        hcs.HRESULT = 0xC037010E
	systemExists    hcs.HRESULT = 0xC037010F
	stopped         hcs.HRESULT = 0xC0370110
)

// Call is one line of a trace.
type Call struct {
	Seq      int            `json:"seq"`
	Step     string         `json:"step,omitempty"`
	Fn       string         `json:"fn"`
	Args     map[string]any `json:"args,omitempty"`
	HR       string         `json:"hr,omitempty"`
	Injected bool           `json:"injected,omitempty"`
	Out      map[string]any `json:"out,omitempty"`
}

// Injection makes the n-th call of a function in a step fail, counted from 1. Besides functions there
// are "(create-completed)", the status of the create notification, and "(guest) ModifySettings".
type Injection struct {
	Function       string          `json:"function"`
	Call           int             `json:"call"`
	HResult        string          `json:"hresult"` // "0x80070005"
	ResultDocument json.RawMessage `json:"resultDocument,omitempty"`
}

// Verdict is what a script decides about a call.
type Verdict struct {
	HR     hcs.HRESULT
	Result string // the result document that comes with a failure
	// AfterEffect: the call takes effect and fails all the same.
	AfterEffect bool
	// Before and After, when set, hold the call up until they are closed: before or after its effect.
	Before, After <-chan struct{}
	// Kill ends the system that the call is about, before the call.
	Kill bool
}

// Options of a Service.
type Options struct {
	Processors  uint32 // logical processors of the host; 0: 4
	Synchronous bool   // create and start complete at once instead of with a notification
	// OldGuest makes Linux guests those of 2021: they unplug on unmount and know no SCSIDevice.
	OldGuest bool
	// Lenient answers success to calls that break the service's rules, unless a test made them fail: so did the
	// stand-ins with which the conformance traces were recorded.
	Lenient bool
	// Access makes VMs open only those files that they, or all VMs, were granted.
	Access bool
	// Sockets are the Hyper-V sockets that guests with an external connection dial over.
	Sockets *Sockets
	// Exec plays the processes of guests; nil: they end at once with code 0.
	Exec ExecFunc
}

// Service is the service in memory. It implements hcs.API, and has the functions of vmcompute.dll
// for layers. It may be used concurrently.
type Service struct {
	opts Options

	mu        sync.Mutex
	step      string
	trace     []*Call
	counts    map[string]int
	inject    []Injection
	script    func(fn string, n int, args map[string]any) Verdict
	systems   map[hcs.Handle]*system
	callbacks map[hcs.Handle]*watcher
	processes map[hcs.Handle]*process
	procCalls map[hcs.Handle]*process
	layers    map[string]*layer
	granted   map[string][]string // by file: the VMs that may open it
	last      map[string]int      // the last number of each kind of handle
	handle    hcs.Handle
	wg        sync.WaitGroup
}

var _ hcs.API = (*Service)(nil)

// New returns a service with nothing in it.
func New(o Options) *Service {
	if o.Processors == 0 {
		o.Processors = 4
	}
	return &Service{opts: o, counts: map[string]int{}, systems: map[hcs.Handle]*system{},
		callbacks: map[hcs.Handle]*watcher{}, processes: map[hcs.Handle]*process{},
		procCalls: map[hcs.Handle]*process{}, layers: map[string]*layer{},
		granted: map[string][]string{}, last: map[string]int{}}
}

// Step begins a step: calls are recorded under its name, counted anew, and failed as injections say.
func (s *Service) Step(name string, injections ...Injection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step, s.inject = name, injections
	clear(s.counts)
}

// Script has f decide every later call; n counts the calls of all functions from 1. Nil ends it.
func (s *Service) Script(f func(fn string, n int, args map[string]any) Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = f
	clear(s.counts)
}

// Trace returns what was called so far.
func (s *Service) Trace() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Call, len(s.trace))
	for i, c := range s.trace {
		out[i] = *c
	}
	return out
}

// Wait waits until nothing of the service runs in the background: notifications and guests.
func (s *Service) Wait() { s.wg.Wait() }

const anyFunction = ""

// verdict decides a call; the service is locked.
func (s *Service) verdict(fn string, args map[string]any) Verdict {
	s.counts[fn]++
	s.counts[anyFunction]++
	for _, in := range s.inject {
		if in.Function != fn || in.Call != s.counts[fn] {
			continue
		}
		var hr hcs.HRESULT
		if _, err := fmt.Sscanf(in.HResult, "0x%x", &hr); err != nil {
			hr = fail
		}
		return Verdict{HR: hr, Result: string(in.ResultDocument)}
	}
	if s.script != nil {
		return s.script(fn, s.counts[anyFunction], args)
	}
	return Verdict{}
}

// effect is what a function does: it runs with the service locked.
type effect func() (out map[string]any, result string, hr hcs.HRESULT)

// call records a call, has its effect unless told otherwise, and returns its result.
func (s *Service) call(fn string, about *system, args map[string]any, do effect) (result string, hr hcs.HRESULT) {
	s.mu.Lock()
	c := &Call{Seq: len(s.trace) + 1, Step: s.step, Fn: fn, Args: args}
	s.trace = append(s.trace, c)
	v := s.verdict(fn, args)
	s.mu.Unlock()
	if v.Kill && about != nil {
		s.kill(about)
	}
	wait(v.Before)
	s.mu.Lock()
	failing := v.HR != ok
	if !failing || v.AfterEffect {
		c.Out, result, hr = do()
		if s.opts.Lenient && hr != hcs.Pending {
			hr, result = ok, ""
		}
	}
	if failing {
		c.Injected, c.Out, result, hr = true, nil, v.Result, v.HR
		if result != "" {
			c.Out = map[string]any{"result": parse(result)}
		}
	}
	c.HR = hex(hr)
	s.mu.Unlock()
	wait(v.After)
	return result, hr
}

// Record creates an entry for a function that this package does not know, with the same faults. do may
// be nil.
func (s *Service) Record(fn string, args map[string]any, do func() (out map[string]any, hr hcs.HRESULT)) hcs.HRESULT {
	_, hr := s.call(fn, nil, args, func() (map[string]any, string, hcs.HRESULT) {
		if do == nil {
			return nil, "", ok
		}
		out, hr := do()
		return out, "", hr
	})
	return hr
}

func wait(ch <-chan struct{}) {
	if ch != nil {
		<-ch
	}
}

func hex(hr hcs.HRESULT) string { return fmt.Sprintf("0x%08x", uint32(hr)) }

// parse returns a document as a value, or the text where it is none.
func parse(text string) any {
	var v any
	if text == "" || json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	return v
}

// newHandle numbers handles of a kind; the service is locked.
func (s *Service) newHandle(kind string) (hcs.Handle, string) {
	s.last[kind]++
	s.handle++
	return s.handle, fmt.Sprintf("%s#%d", kind, s.last[kind])
}

// GUID is the fixed identity that the service gives to a text: a version 5 UUID in the DNS namespace.
func GUID(text string) string { return uuid.NewSHA1(uuid.NameSpaceDNS, []byte(text)).String() }

// GrantVmAccess gives a VM the right to open a file.
func (s *Service) GrantVmAccess(vmID, path string) hcs.HRESULT {
	return s.Record("GrantVmAccess", map[string]any{"vmId": vmID, "path": path}, func() (map[string]any, hcs.HRESULT) {
		s.grant(path, vmID)
		return nil, ok
	})
}

// everyVM stands for the group of all VMs among those that may open a file.
const everyVM = "*"

// GrantGroup gives all VMs the right to open a file.
func (s *Service) GrantGroup(path string) hcs.HRESULT {
	return s.Record("(grant group)", map[string]any{"path": path}, func() (map[string]any, hcs.HRESULT) {
		s.grant(path, everyVM)
		return nil, ok
	})
}

// grant notes who may open a file; the service is locked.
func (s *Service) grant(path, who string) {
	if key := strings.ToLower(path); !slices.Contains(s.granted[key], who) {
		s.granted[key] = append(s.granted[key], who)
	}
}

// mayOpen reports whether a VM may open the file that a request attaches; the service is locked.
func (s *Service) mayOpen(y *system, r modification) (file string, may bool) {
	var d struct{ Path, HostPath string } // of a disk, of persistent memory
	if !s.opts.Access || r.RequestType != hcsschema.RequestAdd || strings.HasSuffix(r.ResourcePath, "/Shares") ||
		json.Unmarshal(r.Settings, &d) != nil {
		return "", true
	}
	file = d.Path + d.HostPath
	who := s.granted[strings.ToLower(file)]
	return file, file == "" || slices.Contains(who, y.id) || slices.Contains(who, everyVM)
}
