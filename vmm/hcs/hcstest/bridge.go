package hcstest

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"net"
	"sync"

	"github.com/stratavm/strata/vmm/hcs"
)

// The messages of the guest protocol that the guest answers, by the number in their type.
var messages = map[uint32]string{
	0x10100101: "Create", 0x10100201: "Start", 0x10100301: "ShutdownGraceful", 0x10100401: "ShutdownForced",
	0x10100501: "ExecuteProcess", 0x10100601: "WaitForProcess", 0x10100701: "SignalProcess", 0x10100901: "GetProperties",
	0x10100a01: "ModifySettings", 0x10100b01: "NegotiateProtocol", 0x10100c01: "DumpStacks",
	0x10100d01: "DeleteContainerState",
}

const (
	headerBytes = 16
	maxMessage  = 64 << 10
	windowsGCS  = "acef5661-84a1-4e44-856b-6245e69f4620"
)

// bridge is the guest's end of an external connection.
type bridge struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (b *bridge) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Close()
	}
	b.conns = nil
}

// boot is what a guest does when its VM starts: it dials the host for entropy, to forward its log,
// and for the bridge, then answers what it is asked.
func (g *guest) boot(s *Service) {
	s.mu.Lock()
	g.conn = &bridge{}
	linux, runtimeID := g.y.linux(), GUID("vm:"+g.y.id)
	s.mu.Unlock()
	service := windowsGCS
	if linux {
		service = hcs.ServiceID(hcs.BridgePort)
		if c, err := s.opts.Sockets.Dial(runtimeID, hcs.ServiceID(hcs.EntropyPort)); err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
		if c, err := s.opts.Sockets.Dial(runtimeID, hcs.ServiceID(hcs.LogPort)); err == nil {
			io.WriteString(c, `{"level":"info","msg":"the guest is up"}`+"\n")
			c.Close()
		}
	}
	c, err := s.opts.Sockets.Dial(runtimeID, service)
	if err != nil {
		return // nobody listens: the host does not want a connection
	}
	g.conn.mu.Lock()
	g.conn.conns = append(g.conn.conns, c)
	g.conn.mu.Unlock()
	g.serve(s, c)
}

// serve answers messages until the connection ends: one after the other, except waiting for processes.
func (g *guest) serve(s *Service, c net.Conn) {
	defer c.Close()
	var writing sync.Mutex
	reply := func(header []byte, answer map[string]any) error {
		text, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		b := make([]byte, headerBytes, headerBytes+len(text))
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(header)&0x0fffffff|0x20000000)
		binary.LittleEndian.PutUint32(b[4:], uint32(headerBytes+len(text)))
		copy(b[8:16], header[8:16])
		writing.Lock()
		defer writing.Unlock()
		_, err = c.Write(append(b, text...))
		return err
	}
	for {
		var header [headerBytes]byte
		if _, err := io.ReadFull(c, header[:]); err != nil {
			return
		}
		kind, size := binary.LittleEndian.Uint32(header[:]), binary.LittleEndian.Uint32(header[4:])
		if size < headerBytes || size > maxMessage {
			return
		}
		payload := make([]byte, size-headerBytes)
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		answer, wait := g.answer(s, messages[kind], payload)
		if wait != nil {
			s.wg.Go(func() {
				wait(answer)
				_ = reply(header[:], answer) // who waited may be gone
			})
			continue
		}
		if reply(header[:], answer) != nil {
			return
		}
	}
}

// answer does what a message asks for and returns the response; wait, when set, completes it in its own time.
func (g *guest) answer(s *Service, name string, payload []byte) (out map[string]any, wait func(map[string]any)) {
	var in struct {
		containerRequest
		ActivityId string
		Request    guestRequest
	}
	args, _ := parse(string(payload)).(map[string]any)
	if name == "" || json.Unmarshal(payload, &in) != nil {
		return map[string]any{"Result": code(0x80004001), "ActivityId": in.ActivityId, "ErrorMessage": "not implemented"}, nil
	}
	for _, tracing := range []string{"ActivityId", "ocsc", "otsc"} {
		delete(args, tracing)
	}
	message := ""
	out = map[string]any{}
	_, hr := s.call("(guest) "+name, g.y, args, func() (map[string]any, string, hcs.HRESULT) {
		hr := ok
		switch {
		case name == "ModifySettings":
			hr, message = g.modify(in.Request)
		case g.about(name, in.ContainerId):
			var more map[string]any
			more, hr, message = g.containers(name, in.containerRequest)
			maps.Copy(out, more)
		case name == "WaitForProcess":
			wait, hr, message = g.await(in.containerRequest)
		}
		return nil, "", hr
	})
	out["Result"], out["ActivityId"] = code(hr), in.ActivityId
	switch {
	case hr != ok && message == "":
		out["ErrorMessage"] = "the guest was told to fail"
	case hr != ok:
		out["ErrorMessage"] = message
	case name == "NegotiateProtocol":
		out["Version"], out["Capabilities"] = 4, g.negotiated()
	case name == "DumpStacks":
		out["GuestStacks"] = "goroutine 1 [running]:\n"
	case (name == "ShutdownGraceful" || name == "ShutdownForced") && in.ContainerId == nullContainer:
		s.wg.Go(func() { s.kill(g.y) })
	}
	return out, wait
}

// about reports whether a request is about a container or a process of a Linux guest.
func (g *guest) about(name, container string) bool {
	switch name {
	case "ExecuteProcess", "SignalProcess", "GetProperties", "DeleteContainerState":
		return g.y.linux()
	case "Create", "Start", "ShutdownGraceful", "ShutdownForced":
		return g.y.linux() && container != nullContainer
	}
	return false
}

// negotiated are the capabilities that the guest answers with. Windows guests want to be told that
// they are created and started.
func (g *guest) negotiated() map[string]any {
	os, wants := "Linux", false
	if !g.y.linux() {
		os, wants = "Windows", true
	}
	return map[string]any{
		"SupportedSchemaVersions":  []any{map[string]any{"Major": 2, "Minor": 1}},
		"RuntimeOsType":            os,
		"SendHostCreateMessage":    wants,
		"SendHostStartMessage":     wants,
		"GuestDefinedCapabilities": parse(g.capabilities()),
	}
}

// code is a result as the protocol writes it.
func code(hr hcs.HRESULT) int32 { return int32(uint32(hr)) }
