package hcs

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// windowsBridge is the Hyper-V socket service for the connection of a Windows guest to its host.
const windowsBridge = "acef5661-84a1-4e44-856b-6245e69f4620"

// ServiceID returns the Hyper-V socket service that corresponds to a vsock port.
func ServiceID(port uint32) string { return fmt.Sprintf("%08x-facb-11e6-bd58-64006a7986d3", port) }

// entropyBytes is the size of the seed for a Linux guest.
const entropyBytes = 512

// services are the host's listeners and connections for the guest while it boots.
type services struct {
	running   sync.WaitGroup // the goroutines that serve a connection; none is added after close
	mu        sync.Mutex
	listeners []net.Listener
	conns     []net.Conn
	closed    bool
}

// serve starts listening for the guest's connections. It must be called before the guest boots.
func (m *Machine) serve() error {
	if m.conn.needsListener() && (m.host.Listen == nil || m.host.Connect == nil) {
		return fmt.Errorf("an external guest connection needs Host.Listen and Host.Connect: %w", errors.ErrUnsupported)
	}
	if m.host.Listen == nil {
		return nil
	}
	var errs []error
	if m.enc.os == vmm.Linux && m.conn.asks() {
		err := m.services.accept(m, EntropyPort, m.seed)
		if !m.conn.needsListener() && errors.Is(err, errors.ErrUnsupported) {
			// The service has its own connection to the guest. Boot files that require a seed will not boot.
			m.host.Logger.Info("the guest gets no entropy from this host", "vm", m.ID(), "reason", err)
			err = nil
		}
		errs = append(errs, err)
		if m.forward {
			errs = append(errs, m.services.accept(m, LogPort, m.forwardLog))
		}
	}
	err := errors.Join(append(errs, m.conn.listen(m))...)
	if err != nil {
		m.services.close()
	}
	return err
}

func (s *services) listen(m *Machine, service string) (net.Listener, error) {
	l, err := m.host.Listen(m.runtimeID, service)
	if err != nil {
		return nil, fmt.Errorf("listen for the guest on service %s: %w", service, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(vmm.ErrGone, l.Close())
	}
	s.listeners = append(s.listeners, l)
	return l, nil
}

// accept serves the single connection of the guest to a port.
func (s *services) accept(m *Machine, port uint32, serve func(net.Conn) error) error {
	l, err := s.listen(m, ServiceID(port))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // which has closed l
		return vmm.ErrGone
	}
	s.running.Go(func() {
		conn, err := l.Accept()
		l.Close()
		if err != nil {
			return // the machine ended before its guest connected
		}
		if s.keep(conn) {
			err = serve(conn)
		}
		conn.Close()
		if err != nil {
			m.host.Logger.Debug("service of the guest", "vm", m.ID(), "port", port, "error", err)
		}
	})
	return nil
}

// keep registers a connection, to be closed with the machine. If the machine is closed already, it returns false.
func (s *services) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return !s.closed
}

// close closes all listeners and connections of the guest. It does not wait for their goroutines: see wait.
func (s *services) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.conns {
		c.Close()
	}
	s.listeners, s.conns = nil, nil
}

// wait waits for the goroutines that serve connections. It is called after close.
func (s *services) wait() { s.running.Wait() }

// seed sends the guest's init its entropy.
func (m *Machine) seed(c net.Conn) error {
	buf := make([]byte, entropyBytes)
	rand.Read(buf) // never fails
	_, err := c.Write(buf)
	return err
}

// maxLogLine bounds a line of the guest's output; the rest of a longer line is dropped.
const maxLogLine = 64 << 10

// forwardLog logs the agent's output, one JSON object per line. The guest controls the text, so it only becomes the
// value of an attribute.
func (m *Machine) forwardLog(c net.Conn) error {
	r := bufio.NewReaderSize(c, maxLogLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			m.logLine(line)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n') // the rest of an overlong line is dropped
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var guestLevels = map[string]slog.Level{"error": slog.LevelError, "fatal": slog.LevelError,
	"panic": slog.LevelError, "warning": slog.LevelWarn, "warn": slog.LevelWarn, "info": slog.LevelInfo}

func (m *Machine) logLine(line []byte) {
	var entry struct{ Level, Msg string }
	level := slog.LevelDebug
	text := string(line)
	if json.Unmarshal(line, &entry) == nil && entry.Msg != "" {
		text = entry.Msg
		if l, ok := guestLevels[entry.Level]; ok {
			level = l
		}
	}
	m.host.Logger.Log(m.life, level, "guest", "vm", m.ID(), "text", clean(text))
}
