package standin

import (
	"encoding/json"
	"errors"
	"net"
	"os"

	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// Client steers the stand-in from a program that uses its libraries.
type Client struct{ addr string }

// Find returns the stand-in that this process was started with, or nil: then it uses the libraries of a
// real Windows, or none.
func Find() *Client {
	port := os.Getenv(EnvPort)
	if port == "" {
		return nil
	}
	return &Client{addr: net.JoinHostPort("127.0.0.1", port)}
}

// Reset forgets all that was and begins with an empty service. Of o the fields Processors, Synchronous,
// OldGuest and Lenient count.
func (c *Client) Reset(o hcstest.Options) error {
	_, err := c.do(order{Op: "reset", Processors: o.Processors, Sync: o.Synchronous, OldGuest: o.OldGuest,
		Lenient: o.Lenient})
	return err
}

// Step begins a step, as [hcstest.Service.Step].
func (c *Client) Step(name string, injections ...hcstest.Injection) error {
	_, err := c.do(order{Op: "step", Name: name, Inject: injections})
	return err
}

// Kill ends a system as if its VM had crashed.
func (c *Client) Kill(id string) error {
	_, err := c.do(order{Op: "kill", Name: id})
	return err
}

// Disconnect tells all programs that the service went away.
func (c *Client) Disconnect() error {
	_, err := c.do(order{Op: "disconnect"})
	return err
}

// Wait waits until nothing of the service runs in the background: notifications and guests.
func (c *Client) Wait() error {
	_, err := c.do(order{Op: "wait"})
	return err
}

// Trace is all calls so far.
func (c *Client) Trace() ([]hcstest.Call, error) {
	r, err := c.do(order{Op: "report"})
	return r.Trace, err
}

// Leftovers names what is still attached, mounted or running.
func (c *Client) Leftovers() ([]string, error) {
	r, err := c.do(order{Op: "report"})
	return append(r.Leftovers, r.Damage...), err
}

// Races counts how often two layers were prepared at the same time.
func (c *Client) Races() (int, error) {
	r, err := c.do(order{Op: "report"})
	return r.Races, err
}

func (c *Client) do(o order) (report, error) {
	conn, err := net.Dial("tcp4", c.addr)
	if err != nil {
		return report{}, err
	}
	defer conn.Close()
	return ask(conn, o)
}

func ask(conn net.Conn, o order) (r report, err error) {
	text, err := json.Marshal(o)
	if err != nil {
		return r, err
	}
	if err := writeMessage(conn, appendValue(appendValue(nil, []byte(control)), string(text))); err != nil {
		return r, err
	}
	m, err := readMessage(conn)
	if err != nil {
		return r, err
	}
	m.take(4)
	if err := errors.Join(json.Unmarshal([]byte(m.text()), &r), m.err); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}
