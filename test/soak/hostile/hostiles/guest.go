// Package hostiles is the part of a hostile guest that stands between the host and the agent.
package hostiles

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest"
)

// Control is the first argument of a program that is none: "Control MODE TYPE" turns the next session in which
// the host asks for TYPE against it, from that request on. Sessions after that one are honest again. What was asked
// for before is answered as the message of an error.
const Control = "/hostile"

// The answers to Control.
const (
	Armed = "no host has asked for it yet" // the attack before was never made
	Spent = "no attack is left"
)

// Guest is a guest that makes one attack at a time.
type Guest struct {
	boot sync.Once
	mu   sync.Mutex
	mode string // empty: none
	when gcs.MessageType
}

// arm says what attack is made next, and returns the one before that was not made.
func (g *Guest) arm(mode string, when gcs.MessageType) (before string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, g.mode, g.when = g.mode, mode, when
	return before
}

// attack returns the mode in which a request is answered; empty: honestly.
func (g *Guest) attack(asked gcs.MessageType) (mode string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mode != "" && asked == g.when {
		mode, g.mode = g.mode, ""
	}
	return mode
}

// commandLine arms what the kernel command line says.
func (g *Guest) commandLine() {
	b, _ := os.ReadFile("/proc/cmdline") // nothing is asked for there
	for word := range strings.FieldsSeq(string(b)) {
		if mode, ok := strings.CutPrefix(word, "hostile="); ok {
			g.arm(mode, gcs.TypeNegotiateProtocol)
		}
	}
}

// session is one host's.
type session struct {
	stream io.ReadWriteCloser
	mux    *gcs.GuestMux
	bridge net.Conn // to the host
	agent  net.Conn
	write  sync.Mutex // held for each whole message to the host
	answer int        // counts the lies
}

// Session is a guest.Config's.
func (g *Guest) Session(ctx context.Context, stream io.ReadWriteCloser, serve guest.ServeFunc) {
	g.boot.Do(g.commandLine)
	defer stream.Close()
	mux, err := gcs.NewGuestMux(stream)
	if err != nil {
		return
	}
	defer mux.Close()
	s := &session{stream: stream, mux: mux}
	if s.bridge, err = mux.Dial(ctx, gcs.PortBridge); err != nil {
		return
	}
	agent, inner := net.Pipe()
	s.agent = agent
	defer agent.Close()
	go func() { _ = serve(ctx, inner, mux.Dial) }() // an error ends agent, too
	honest := make(chan struct{})
	go s.answers(honest)
	for {
		h, payload, err := gcs.ReadMessage(s.bridge, gcs.LargestMaxMessage)
		if err != nil {
			return
		}
		if control := controlOf(h, payload); control != nil {
			s.send(gcs.Header{Type: h.Type.Response(), ID: h.ID}, g.obey(control))
			continue
		}
		if mode := g.attack(h.Type); mode != "" {
			close(honest)
			attacks[mode](ctx, s, h, payload)
			_, _ = io.Copy(io.Discard, s.bridge) // the host goes when it likes
			return
		}
		frame, err := gcs.EncodeMessage(h, json.RawMessage(payload), gcs.LargestMaxMessage)
		if err == nil {
			_, err = agent.Write(frame)
		}
		if err != nil {
			return
		}
	}
}

// answers passes on what the agent says, as long as the session is honest.
func (s *session) answers(honest <-chan struct{}) {
	for {
		h, payload, err := gcs.ReadMessage(s.agent, gcs.LargestMaxMessage)
		if err != nil {
			return
		}
		select {
		case <-honest: // closed: the agent has nothing to say any more, but is not held up
		default:
			s.send(h, json.RawMessage(payload))
		}
	}
}

// send sends a message and reports whether the host was still there.
func (s *session) send(h gcs.Header, payload any) bool {
	frame, err := gcs.EncodeMessage(h, payload, gcs.LargestMaxMessage)
	if err != nil {
		return false
	}
	s.write.Lock()
	defer s.write.Unlock()
	_, err = s.bridge.Write(frame)
	return err == nil
}

// controlOf returns the arguments of a Control; nil: it is another request.
func controlOf(h gcs.Header, payload []byte) []string {
	var r gcs.ExecuteRequest
	var p gcs.ProcessParameters
	if h.Type != gcs.TypeExecuteProcess || json.Unmarshal(payload, &r) != nil ||
		r.Settings.ProcessParameters.Decode(&p) != nil {
		return nil
	}
	args := p.CommandArgs
	if p.OciProcess != nil {
		args = p.OciProcess.Args
	}
	if len(args) != 3 || args[0] != Control {
		return nil
	}
	return args
}

// obey does what a Control says, and answers it.
func (g *Guest) obey(control []string) *gcs.EmptyResponse {
	text := Spent
	mode := control[1]
	if mode != "" && attacks[mode] == nil {
		text = fmt.Sprintf("no such mode: %q", mode)
	} else if before := g.arm(mode, typeNamed(control[2])); before != "" {
		text = Armed
	}
	return &gcs.EmptyResponse{ResponseBase: gcs.ResponseBase{Result: gcs.ResultFail, ErrorMessage: text}}
}

// Types are the requests that an attack can begin with.
var Types = []gcs.MessageType{gcs.TypeNegotiateProtocol, gcs.TypeGetProperties, gcs.TypeModifySettings,
	gcs.TypeCreate, gcs.TypeExecuteProcess, gcs.TypeWaitForProcess, gcs.TypeDeleteContainerState, gcs.TypeShutdownGraceful}

func typeNamed(name string) gcs.MessageType {
	for _, t := range Types {
		if t.String() == name {
			return t
		}
	}
	return 0 // no request is of that type
}
