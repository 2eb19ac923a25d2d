package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// maxQMPLine bounds a message from QEMU, in bytes. The list of block nodes, of which each extent of a disk has one,
// takes about 550 bytes per node.
const maxQMPLine = 64 << 20

var (
	// errQMPClosed is matched when the control connection is closed. Whether a command in progress took effect is
	// unknown.
	errQMPClosed = errors.New("the control connection to QEMU is closed")
	// errNotSent is matched when a command was not sent to QEMU.
	errNotSent = errors.New("the command was not sent")
	// errNoDevice is matched when QEMU has no such device or node.
	errNoDevice = errors.New("QEMU knows no such device")
)

// QMPError is the error when QEMU rejects a command, which then had no effect.
type QMPError struct {
	Command string
	Class   string
	Desc    string
}

// Error returns QEMU's message, with an explanation if it is obscure.
func (e *QMPError) Error() string {
	s := fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc)
	if e.locked() {
		s += " (another program, such as another VM, has the file open; stop that first)"
	}
	return s
}

func (e *QMPError) locked() bool { return strings.Contains(e.Desc, `" lock`) }

// Is matches the sentinels of package vmm and of io/fs.
func (e *QMPError) Is(target error) bool {
	switch target {
	case errNoDevice:
		return e.Class == "DeviceNotFound" || strings.Contains(e.Desc, "Cannot find device") ||
			strings.Contains(e.Desc, "Failed to find node with node-name") ||
			strings.HasPrefix(e.Desc, "Chardev '") && strings.HasSuffix(e.Desc, "' not found") ||
			strings.HasPrefix(e.Desc, "File descriptor named '")
	case vmm.ErrBusy:
		return e.locked() || strings.Contains(e.Desc, "is in use") || strings.HasSuffix(e.Desc, "' is busy")
	case vmm.ErrAccessDenied, fs.ErrPermission:
		return strings.Contains(e.Desc, "Permission denied")
	case fs.ErrNotExist:
		return strings.Contains(e.Desc, "No such file or directory")
	}
	return false
}

// qmpMessage is any line that QEMU sends.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// qmpReader reads QEMU's messages.
type qmpReader struct{ r *bufio.Reader }

func newQMPReader(r io.Reader) *qmpReader { return &qmpReader{bufio.NewReaderSize(r, 16<<10)} }

// next returns the next message. A line that is too long or not a JSON object is an error.
func (q *qmpReader) next() (qmpMessage, error) {
	var line []byte
	for {
		part, err := q.r.ReadSlice('\n')
		if len(line)+len(part) > maxQMPLine {
			return qmpMessage{}, fmt.Errorf("QEMU sent a message of more than %d bytes", maxQMPLine)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return qmpMessage{}, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			return qmpMessage{}, fmt.Errorf("QEMU sent no message of QMP: %w", err)
		}
		return m, nil
	}
}

// qmpClient is a control connection. Commands may be issued concurrently.
type qmpClient struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	sending chan struct{} // a semaphore of one: the right to write

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan qmpMessage
	err     error
	done    chan struct{}
}

// newQMPClient performs the handshake on conn, of which it takes ownership. onEvent is called for each event, in order,
// and must not block.
func newQMPClient(ctx context.Context, conn net.Conn, onEvent func(string, json.RawMessage)) (*qmpClient, error) {
	q := &qmpClient{conn: conn, onEvent: onEvent, sending: make(chan struct{}, 1),
		waiting: map[uint64]chan qmpMessage{}, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := newQMPReader(conn)
	err := q.greet(r)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("connect to QEMU: %w", err), ignoreClosed(conn.Close()))
	}
	go q.read(r)
	if err := q.do(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		<-q.done
		return nil, fmt.Errorf("connect to QEMU: %w", err)
	}
	return q, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (q *qmpClient) greet(r *qmpReader) error {
	for {
		m, err := r.next()
		switch {
		case err != nil:
			return err
		case m.Greeting != nil:
			return nil
		case m.Event == "":
			return errors.New("the program at the socket is not QEMU: it did not greet")
		}
	}
}

func (q *qmpClient) read(r *qmpReader) {
	var err error
	for err == nil {
		var m qmpMessage
		if m, err = r.next(); err != nil {
			break
		}
		switch {
		case m.Event != "":
			q.onEvent(m.Event, m.Data)
		case m.ID != nil:
			q.mu.Lock()
			ch := q.waiting[*m.ID]
			delete(q.waiting, *m.ID)
			q.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		}
	}
	q.mu.Lock()
	q.err = fmt.Errorf("%w: %w", errQMPClosed, err)
	q.mu.Unlock()
	q.conn.Close()
	close(q.done)
}

// close closes the connection. Commands in progress fail with errQMPClosed.
func (q *qmpClient) close() { q.conn.Close() }

func (q *qmpClient) closedErr() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// do issues a command and waits for the response, which it decodes into result unless that is nil. An error is a
// *QMPError (no effect), matches errNotSent (no effect), or leaves the effect unknown.
func (q *qmpClient) do(ctx context.Context, command string, args, result any) error {
	return q.doWith(ctx, command, args, result, nil)
}

// doWith is do with an open file that is sent along with the command, unless it is nil.
func (q *qmpClient) doWith(ctx context.Context, command string, args, result any, f *os.File) error {
	ch := make(chan qmpMessage, 1)
	q.mu.Lock()
	q.last++
	id := q.last
	q.waiting[id] = ch
	q.mu.Unlock()
	forget := func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err == nil {
		err = q.send(ctx, append(line, '\n'), f)
	} else {
		err = fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err != nil {
		forget()
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	var m qmpMessage
	select {
	case m = <-ch:
	case <-ctx.Done():
		forget()
		return fmt.Errorf("QEMU %s: no answer: %w", command, context.Cause(ctx))
	case <-q.done:
		select {
		case m = <-ch: // it arrived just before the end
		default:
			return fmt.Errorf("QEMU %s: %w", command, q.closedErr())
		}
	}
	if m.Error != nil {
		return &QMPError{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QEMU %s: the answer is not understood: %w", command, err)
	}
	return nil
}

// send writes a line, with f unless that is nil. If ctx ends after a part of it was written, the connection is unusable
// and send closes it.
func (q *qmpClient) send(ctx context.Context, line []byte, f *os.File) error {
	select {
	case q.sending <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNotSent, context.Cause(ctx))
	case <-q.done:
		return fmt.Errorf("%w: %w", errNotSent, q.closedErr())
	}
	defer func() { <-q.sending }()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errNotSent, context.Cause(ctx))
	}
	if err := q.closedErr(); err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		// The connection may be closed already; then the write fails by itself.
		_ = q.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	n := 0
	var err error
	if f != nil {
		n, err = sendFile(q.conn, line, f)
	}
	if err == nil && n < len(line) {
		var more int
		more, err = q.conn.Write(line[n:])
		n += more
	}
	if !stop() {
		<-interrupted
		if resetErr := q.conn.SetWriteDeadline(time.Time{}); resetErr != nil {
			q.close()
		}
	}
	switch {
	case err == nil:
		return nil
	case n == 0:
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	q.close()
	return fmt.Errorf("%w: %w", errQMPClosed, err)
}
