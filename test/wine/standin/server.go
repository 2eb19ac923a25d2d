package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"

	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// EnvPort names the environment variable with the port of the server on the loopback interface.
const EnvPort = "STRATA_STANDIN"

// Server answers the calls of the libraries.
type Server struct {
	log  *slog.Logger
	ln   net.Listener
	wg   sync.WaitGroup
	opts hcstest.Options
	wrap func(*hcstest.Service) hcs.API

	mu      sync.Mutex
	world   *world
	conns   map[net.Conn]bool
	calling int // calls that are not answered yet
	closing bool
}

// world is what calls act on; a test that begins anew gets a new one.
type world struct {
	svc      *hcstest.Service
	sockets  *hcstest.Sockets
	platform *wclayertest.Platform
	systems  hcs.API

	mu      sync.Mutex
	watches map[hcs.Handle]net.Conn // registrations, by callback
	streams map[streamKey]io.Closer
	disks   map[uint64]diskRef // by the handle that a program has
}

// ServerOptions configure [Listen].
type ServerOptions struct {
	Service hcstest.Options
	// Systems may put another service before the one in memory: it gets the calls on systems.
	Systems func(*hcstest.Service) hcs.API
	Log     *slog.Logger
}

// Listen starts a server on a free port of the loopback interface.
func Listen(o ServerOptions) (*Server, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("stand-in: %w", err)
	}
	s := &Server{log: o.Log, ln: ln, opts: o.Service, wrap: o.Systems, conns: map[net.Conn]bool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.reset(s.opts)
	s.wg.Go(s.accept)
	return s, nil
}

// Env is the environment entry by which programs find the server.
func (s *Server) Env() string {
	return EnvPort + "=" + strconv.Itoa(s.ln.Addr().(*net.TCPAddr).Port)
}

func (s *Server) reset(o hcstest.Options) {
	o.Sockets = hcstest.NewSockets()
	svc := hcstest.New(o)
	w := &world{svc: svc, sockets: o.Sockets, platform: wclayertest.New(svc), systems: svc,
		watches: map[hcs.Handle]net.Conn{},
		streams: map[streamKey]io.Closer{}, disks: map[uint64]diskRef{}}
	if s.wrap != nil {
		w.systems = s.wrap(svc)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.world = w
}

func (s *Server) current() *world {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.world
}

// Service is the service in memory as it is now.
func (s *Server) Service() *hcstest.Service { return s.current().svc }

// Leftovers names all that programs left behind.
func (s *Server) Leftovers() []string {
	w := s.current()
	return append(w.svc.Leftovers(), w.platform.Leftovers()...)
}

// Calling returns how many calls are not answered yet, those of programs that have ended included.
func (s *Server) Calling() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calling
}

func (s *Server) count(calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calling += calls
}

func (s *Server) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.conns[c] = true
		closing := s.closing
		s.mu.Unlock()
		if closing {
			c.Close()
			return
		}
		s.wg.Go(func() {
			err := s.serve(c)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("call of a stand-in library", "error", err)
			}
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// Close ends the server and all connections.
func (s *Server) Close() error {
	err := s.ln.Close()
	s.mu.Lock()
	s.closing = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

// answer is what a function gives back.
type answer struct {
	hr   uint32
	outs []any
	// then goes on with the connection after the answer, until one side closes it.
	then func(net.Conn) error
}

func (s *Server) serve(c net.Conn) error {
	r, err := readMessage(c)
	if err != nil {
		return err
	}
	fn := string(r.bytes())
	if fn == control {
		return s.control(c, r.text())
	}
	w := s.current()
	f := find(fn)
	if f == nil {
		return fmt.Errorf("function %q is unknown", fn)
	}
	s.count(1)
	a := f(w, r)
	s.count(-1)
	if r.err != nil {
		return fmt.Errorf("%s: %w", fn, r.err)
	}
	body := []byte{byte(a.hr), byte(a.hr >> 8), byte(a.hr >> 16), byte(a.hr >> 24)}
	for _, v := range a.outs {
		body = appendValue(body, v)
	}
	if err := writeMessage(c, body); err != nil || a.then == nil {
		return err
	}
	return a.then(c)
}

// control is the function by which tests steer the server.
const control = "(control)"

// order is what a test asks of the server.
type order struct {
	Op         string
	Name       string // of a step or system; the runtime identity of a VM that is listened for
	Service    string // the Hyper-V socket service that is listened on
	Port       int    // where connections to it go
	Inject     []hcstest.Injection
	Processors uint32
	Sync       bool
	OldGuest   bool
	Lenient    bool
}

// report is what it gets.
type report struct {
	Trace     []hcstest.Call
	Leftovers []string
	Races     int
	Damage    []string
	Error     string
}

func (s *Server) control(c net.Conn, text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	w := s.current()
	var rep report
	switch o.Op {
	case "reset":
		opts := s.opts
		opts.Processors, opts.Synchronous, opts.OldGuest, opts.Lenient = o.Processors, o.Sync, o.OldGuest, o.Lenient
		s.reset(opts)
	case "step":
		w.svc.Step(o.Name, o.Inject...)
	case "kill":
		w.svc.Kill(o.Name)
	case "disconnect":
		w.svc.Disconnect()
	case "wait":
		w.svc.Wait()
	case "listen":
		// The connection lasts as long as the listener of the program.
		return w.listen(c, o)
	case "report":
		rep = report{Trace: w.svc.Trace(), Leftovers: s.Leftovers(), Races: w.platform.Races(), Damage: w.platform.Damage()}
	default:
		rep.Error = fmt.Sprintf("order %q is unknown", o.Op)
	}
	return reply(c, rep)
}

func reply(c net.Conn, rep report) error {
	b, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	return writeMessage(c, appendValue(make([]byte, 4), string(b)))
}
