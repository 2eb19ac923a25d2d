package supervise

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// hub copies the program's output to attached clients.
type hub struct {
	stall time.Duration // how long a write to a client may block

	mu      sync.Mutex
	clients map[net.Conn]bool
}

// add adds a client. tell is called before the client gets output, and no output is lost after it.
func (h *hub) add(c net.Conn, tell func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	tell()
	if h.clients == nil {
		h.clients = map[net.Conn]bool{}
	}
	h.clients[c] = true
}

// remove removes a client, to which nothing is written after that. It reports whether the client was there.
func (h *hub) remove(c net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.clients[c]
	delete(h.clients, c)
	return was
}

// writeTo writes to one client unless it was removed.
func (h *hub) writeTo(c net.Conn, k kind, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[c] {
		h.send(c, k, b)
	}
}

// write writes to each client. A client for which that takes too long is disconnected, so that it blocks the program
// only once.
func (h *hub) write(k kind, b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients {
		h.send(c, k, b)
	}
}

func (h *hub) send(c net.Conn, k kind, b []byte) {
	_ = c.SetWriteDeadline(time.Now().Add(h.stall))
	if writeFrames(c, k, b) != nil {
		delete(h.clients, c)
		_ = c.Close()
	}
}

type output struct {
	hub  *hub
	kind kind
	to   io.Writer
}

// Write implements io.Writer. It writes to the clients even if writing to the first destination fails, and returns that
// error.
func (o *output) Write(b []byte) (n int, err error) {
	n = len(b)
	if o.to != nil {
		n, err = o.to.Write(b)
	}
	o.hub.write(o.kind, b)
	return n, err
}

// attach connects a client with the program's streams until either ends.
func (s *Server) attach(conn net.Conn, stdin bool) {
	select {
	case <-s.done:
		s.reply(conn, ErrEnded)
		return
	default:
	}
	s.hub.add(conn, func() { s.reply(conn, nil) })
	told := make(chan struct{})
	left := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-s.done:
		case <-left:
		case <-s.ctx.Done():
		}
		if s.hub.remove(conn) {
			select {
			case <-s.done:
				s.tell(conn, s.exit)
			default:
			}
		}
		_ = conn.Close()
	}()
	s.listen(conn, stdin)
	close(left)
	<-told
}

// tell sends a client how a program has ended.
func (s *Server) tell(conn net.Conn, e Exit) {
	b, err := json.Marshal(e)
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
	_ = writeFrames(conn, kindExit, b)
}

// listen handles what an attached client sends.
func (s *Server) listen(conn net.Conn, stdin bool) {
	flow, stop, pumped := newInflow(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(pumped)
		flow.pump(s.input, stop, func(n int) { s.hub.writeTo(conn, kindTaken, count(n)) })
	}()
	defer func() { // let the program read the last input
		flow.end()
		t := time.NewTimer(lastTime)
		defer t.Stop()
		select {
		case <-pumped:
		case <-t.C:
		case <-s.done:
		case <-s.ctx.Done():
		}
		close(stop)
		<-pumped
	}()
	buf := make([]byte, maxFrame)
	for {
		k, b, err := readFrame(conn, buf)
		switch {
		case err != nil:
			return
		case k == kindStdin:
			if stdin && !flow.put(b) {
				return
			}
			continue
		}
		if p, err := s.running(); err == nil {
			s.control(p.Process, k, b)
		}
	}
}

// lastTime is how long a program may take to read the input of a client that has disconnected.
const lastTime = 10 * time.Second

// control carries out a signal or resize frame. Errors are ignored: the client sees what becomes of the process.
func (s *Server) control(p vmm.Process, k kind, b []byte) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTime)
	defer cancel()
	switch {
	case k == kindResize:
		var to size
		if json.Unmarshal(b, &to) == nil {
			_ = p.Resize(ctx, to.Width, to.Height)
		}
	case k == kindSignal && len(b) == 1 && b[0] >= 1 && b[0] <= 64:
		_ = p.Signal(ctx, int(b[0]))
	}
}
