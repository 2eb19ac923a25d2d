package gcsserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
)

// version is the value of the capability StrataAgent.
const version = 1

// maxRequest is the maximum size of a request in bytes. The longest arguments that Linux accepts fit.
const maxRequest = gcs.LargestMaxMessage

// maxConcurrent is how many requests of a session run at the same time before no more are read. Most are waits for
// processes.
const maxConcurrent = 4096

// session is one bridge.
type session struct {
	rt         Runtime
	dial       Dialer
	log        *slog.Logger
	negotiated atomic.Bool
	running    sync.WaitGroup // requests under way

	writing sync.Mutex
	conn    net.Conn
}

// Serve answers the requests of one bridge until the host disconnects (nil), violates the protocol, or ctx ends (nil).
// It closes conn and cancels waits for processes, and returns when the other requests under way have completed.
func Serve(ctx context.Context, conn net.Conn, dial Dialer, rt Runtime, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s := &session{rt: rt, dial: dial, log: log, conn: conn}
	defer s.running.Wait()
	defer cancel()
	slots := make(chan struct{}, maxConcurrent)
	for {
		h, payload, err := gcs.ReadMessage(conn, maxRequest)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err == nil && !h.Type.IsRequest() {
			err = fmt.Errorf("%w: the host sent a %v", gcs.ErrProtocol, h.Type)
		}
		if err != nil {
			return err
		}
		slots <- struct{}{}
		end := func() {}
		if h.Type == gcs.TypeModifySettings { // here, because the requests themselves run concurrently
			end = sync.OnceFunc(rt.Begin())
		}
		s.running.Go(func() {
			defer func() { <-slots }()
			defer end()
			s.handle(ctx, h, payload, end)
		})
	}
}

type base interface{ Base() *gcs.ResponseBase }

// handle runs a request and sends the response. It calls end when the mounts that the request changes have changed.
func (s *session) handle(ctx context.Context, h gcs.Header, payload []byte, end func()) {
	started := time.Now()
	var req gcs.RequestBase
	var resp base = &gcs.EmptyResponse{}
	err := Decode(payload, &req)
	if err == nil {
		if req.ContainerId != "" && req.ContainerId != gcs.NullContainer { // changes no mounts
			end()
		}
		var r base
		if r, err = s.guarded(ctx, h.Type, req, payload); r != nil {
			resp = r
		}
	}
	end()
	if ctx.Err() != nil {
		return // nobody is there to read the answer
	}
	resp.Base().ActivityId = req.ActivityId
	if err != nil {
		setError(resp.Base(), err)
	}
	s.log.Debug("request", "type", h.Type, "container", req.ContainerId, "took", time.Since(started), "err", err)
	s.send(gcs.Header{Type: h.Type.Response(), ID: h.ID}, resp)
}

// setError sets the error of a response. It truncates the text so that hosts accept the response's size.
func setError(b *gcs.ResponseBase, err error) {
	const most = 3000
	text := err.Error()
	if len(text) > most {
		text = text[:most] + "..."
	}
	b.Result, b.ErrorMessage = ResultOf(err), text
	b.ErrorRecords = []gcs.ErrorRecord{{Result: b.Result, Message: text, ModuleName: "gcs", Line: 1<<32 - 1}}
}

func (s *session) send(h gcs.Header, payload any) {
	frame, err := gcs.EncodeMessage(h, payload, gcs.DefaultMaxMessage)
	if err != nil {
		e := &gcs.EmptyResponse{}
		setError(&e.ResponseBase, err)
		if frame, err = gcs.EncodeMessage(h, e, gcs.DefaultMaxMessage); err != nil {
			return
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if _, err := s.conn.Write(frame); err != nil {
		s.conn.Close() // the reader ends the session
	}
}

// guarded calls route and turns a panic into an error: the agent is PID 1, and its end would be that of the VM.
func (s *session) guarded(ctx context.Context, t gcs.MessageType, b gcs.RequestBase,
	payload []byte) (r base, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic", "request", t, "panic", v, "stack", string(debug.Stack()))
			r, err = nil, fmt.Errorf("a fault of the agent: panic: %v", v)
		}
	}()
	return s.route(ctx, t, b, payload)
}

func (s *session) route(ctx context.Context, t gcs.MessageType, b gcs.RequestBase, payload []byte) (base, error) {
	if t == gcs.TypeNegotiateProtocol {
		return s.negotiate(payload)
	}
	if !s.negotiated.Load() {
		return &gcs.EmptyResponse{ResponseBase: gcs.ResponseBase{Result: gcs.ResultNotImplemented}}, nil
	}
	container := b.ContainerId
	if container == gcs.NullContainer {
		container = ""
	}
	if t != gcs.TypeModifySettings {
		if err := s.await(ctx); err != nil {
			return nil, err
		}
	}
	// Changes of the guest are completed even if the host disconnects.
	lasting := context.WithoutCancel(ctx)
	switch t {
	case gcs.TypeModifySettings:
		return nil, s.modify(ctx, container, payload)
	case gcs.TypeCreate:
		if err := s.create(lasting, container, payload); err != nil {
			return nil, err
		}
		s.running.Go(func() { s.notifyEnd(ctx, container, b.ActivityId) })
		return nil, nil
	case gcs.TypeStart:
		return nil, nil // a container starts with its first process
	case gcs.TypeExecuteProcess:
		return s.exec(ctx, container, payload)
	case gcs.TypeWaitForProcess:
		return s.wait(ctx, container, payload)
	case gcs.TypeSignalProcess:
		return nil, s.signal(ctx, container, payload)
	case gcs.TypeResizeConsole:
		var r gcs.ResizeRequest
		if err := Decode(payload, &r); err != nil {
			return nil, err
		}
		return nil, s.rt.Resize(ctx, container, r.ProcessId, r.Width, r.Height)
	case gcs.TypeGetProperties:
		return s.properties(ctx, container, payload)
	case gcs.TypeDumpStacks:
		return &gcs.StacksResponse{GuestStacks: stacks()}, nil
	case gcs.TypeDeleteContainerState:
		if container == "" {
			return nil, fmt.Errorf("the VM itself cannot be deleted: %w", ErrInvalid)
		}
		return nil, s.rt.Delete(lasting, container)
	case gcs.TypeShutdownGraceful, gcs.TypeShutdownForced:
		if container == "" {
			return nil, s.rt.PowerOff(lasting)
		}
		sig := 15
		if t == gcs.TypeShutdownForced {
			sig = 9
		}
		return nil, s.rt.Stop(ctx, container, sig)
	}
	return &gcs.EmptyResponse{ResponseBase: gcs.ResponseBase{Result: gcs.ResultNotImplemented,
		ErrorMessage: t.String() + " is not served by this guest"}}, nil
}

func (s *session) negotiate(payload []byte) (base, error) {
	var r gcs.NegotiateRequest
	if err := Decode(payload, &r); err != nil {
		return nil, err
	}
	resp := &gcs.NegotiateResponse{}
	if r.MinimumVersion > gcs.ProtocolVersion || r.MaximumVersion < gcs.ProtocolVersion {
		resp.Result = gcs.ResultProtocolVersion
		resp.ErrorMessage = fmt.Sprintf("protocol versions %d to %d are offered, this guest speaks %d",
			r.MinimumVersion, r.MaximumVersion, gcs.ProtocolVersion)
		return resp, nil
	}
	s.negotiated.Store(true)
	resp.Version = gcs.ProtocolVersion
	resp.Capabilities = gcs.Capabilities{
		SupportedSchemaVersions: []gcs.Version{{Major: 2, Minor: 1}}, RuntimeOsType: "Linux",
		GuestDefinedCapabilities: gcs.GuestDefinedCapabilities{SignalProcessSupported: true,
			DumpStacksSupported: true, DeleteContainerStateSupported: true, StrataAgent: version, StrataMaxRequest: maxRequest},
	}
	return resp, nil
}

// await blocks while the runtime is held as a template.
func (s *session) await(ctx context.Context) error {
	if h, ok := s.rt.(holder); ok {
		return h.Await(ctx)
	}
	return nil
}

func (s *session) modify(ctx context.Context, container string, payload []byte) error {
	var r struct{ Request Modification }
	if err := Decode(payload, &r); err != nil {
		return err
	}
	if container != "" || r.Request.ResourceType != hcsschema.ResourceTemplate {
		if err := s.await(ctx); err != nil {
			return err
		}
	}
	if container != "" {
		return s.modifyContainer(ctx, container, r.Request)
	}
	if r.Request.RequestType == "" {
		r.Request.RequestType = "Add"
	}
	if err := s.rt.Modify(context.WithoutCancel(ctx), r.Request, s.dial); err != nil {
		return fmt.Errorf("%s %s: %w", r.Request.RequestType, r.Request.ResourceType, err)
	}
	return nil
}

// modifyContainer pauses, resumes or updates a running container.
func (s *session) modifyContainer(ctx context.Context, id string, m Modification) error {
	type request struct {
		resource hcsschema.ResourceType
		kind     hcsschema.RequestType
	}
	switch (request{m.ResourceType, m.RequestType}) {
	case request{hcsschema.ResourcePaused, hcsschema.RequestAdd}:
		return s.rt.Pause(ctx, id)
	case request{hcsschema.ResourcePaused, hcsschema.RequestRemove}:
		return s.rt.Resume(ctx, id)
	case request{hcsschema.ResourceConstraints, hcsschema.RequestUpdate}, request{hcsschema.ResourceConstraints, ""}:
		var c gcs.Constraints
		if err := Decode(m.Settings, &c); err != nil {
			return err
		}
		return s.rt.Update(ctx, id, c.Linux)
	}
	return fmt.Errorf("%s %s of container %s: %w", m.RequestType, m.ResourceType, id, ErrUnsupported)
}

func (s *session) create(ctx context.Context, container string, payload []byte) error {
	var r gcs.CreateRequest
	if err := Decode(payload, &r); err != nil {
		return err
	}
	var config gcs.ContainerConfig
	if err := Decode([]byte(r.ContainerConfig), &config); err != nil {
		return err
	}
	if v := config.SchemaVersion; v.Major != 2 || v.Minor < 1 {
		return fmt.Errorf("container document of schema %d.%d, at least 2.1 is needed: %w", v.Major, v.Minor, ErrJSON)
	}
	if container == "" {
		return fmt.Errorf("a container needs an id: %w", ErrInvalid)
	}
	return s.rt.Create(ctx, container, config)
}

// notifyEnd waits until a container has ended, and notifies the host that created it.
func (s *session) notifyEnd(ctx context.Context, container, activity string) {
	how, err := s.rt.Ended(ctx, container)
	if err != nil {
		return // the host has disconnected, or the container was never started
	}
	s.send(gcs.Header{Type: gcs.TypeNotification}, &gcs.Notification{ContainerId: container, ActivityId: activity,
		Type: how, Operation: "None"})
}

// wait responds when the process has ended or the request's timeout has expired.
func (s *session) wait(ctx context.Context, container string, payload []byte) (base, error) {
	var r gcs.WaitRequest
	if err := Decode(payload, &r); err != nil {
		return nil, err
	}
	if r.TimeoutInMs != gcs.InfiniteTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutInMs)*time.Millisecond)
		defer cancel()
	}
	code, err := s.rt.Wait(ctx, container, r.ProcessId)
	resp := &gcs.WaitResponse{ExitCode: uint32(int32(code))}
	if o, ok := s.rt.(interface{ OutOfMemory(string, uint32) bool }); ok && err == nil {
		resp.StrataOutOfMemory = o.OutOfMemory(container, r.ProcessId)
	}
	return resp, err
}

func (s *session) signal(ctx context.Context, container string, payload []byte) error {
	r := struct {
		ProcessId uint32
		Options   gcs.SignalOptions
	}{}
	if err := Decode(payload, &r); err != nil {
		return err
	}
	if r.Options.Signal == 0 {
		r.Options.Signal = 9
	}
	return s.rt.Signal(ctx, container, r.ProcessId, r.Options.Signal)
}
