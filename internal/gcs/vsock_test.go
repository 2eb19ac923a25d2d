package gcs

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
)

// hosts serves hosts on a socket with sessions that echo what they get until they get "end".
func hosts(t *testing.T) (dial func(first string) net.Conn, token string, ended <-chan struct{}) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	token = NewToken()
	over, done := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(done)
		ServeHosts(l, TokenDigest(token), func(s io.ReadWriteCloser) {
			defer func() { s.Close(); over <- struct{}{} }()
			b := make([]byte, 100)
			for {
				n, err := s.Read(b)
				if err != nil || string(b[:n]) == "end" {
					return
				}
				if _, err := s.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return func(first string) net.Conn {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// Who is turned away may be so before the last of its words.
		if _, err := io.WriteString(c, first); err != nil && !isReset(err) {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}, token, over
}

func session(t *testing.T, c net.Conn) io.ReadWriteCloser {
	t.Helper()
	r, err := hostHandshake(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return &hostStream{c, r}
}

func checkEcho(t *testing.T, s io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
		t.Errorf("%q %v, want %q", got, err, text)
	}
}

// closed checks that the other end hung up without saying anything.
func closed(t *testing.T, c io.Reader) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) && !isReset(err) {
		t.Errorf("%d bytes, %v; want the end of the connection", n, err)
	}
}

func isReset(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && !op.Timeout()
}

// TestHostsAtOnce: each host has a session of its own; one that hangs up ends its own, and one whose
// session ends hears of it.
func TestHostsAtOnce(t *testing.T) {
	leaktest.Check(t)
	dial, token, ended := hosts(t)
	one, two := session(t, dial(token)), session(t, dial(token))
	checkEcho(t, one, "one \xff\xff\x01")
	checkEcho(t, two, "two")
	one.Close()
	<-ended
	checkEcho(t, two, "and on")
	if _, err := io.WriteString(two, "end"); err != nil {
		t.Fatal(err)
	}
	<-ended
	closed(t, two)
}

// TestHostsWithoutTheTokenAreTurnedAway: who does not know the token gets nothing, and strangers who say nothing do
// not keep out a host for longer than they are there.
func TestHostsWithoutTheTokenAreTurnedAway(t *testing.T) {
	leaktest.Check(t)
	dial, token, _ := hosts(t)
	closed(t, dial(NewToken()))
	closed(t, dial(string(bytes.Repeat([]byte{escape}, tokenSize))+string(markFrame(markHello, token+token[:6]))))
	var silent []net.Conn
	for range maxStrangers {
		silent = append(silent, dial(token[:tokenSize-1]))
	}
	closed(t, dial("")) // one too many
	for _, c := range silent {
		c.Close()
	}
	for { // the agent notices soon that they are gone
		c := dial("")
		if _, err := io.WriteString(c, token); err != nil {
			continue
		}
		if r, err := hostHandshake(t.Context(), c); err == nil {
			checkEcho(t, &hostStream{c, r}, "let in")
			return
		}
	}
}
