package gcs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
)

// Over vsock our agent listens and hosts dial: any number of them, each with a connection of its own.
// Such a connection is to the agent what a virtio-serial port is, sessions and multiplexer included,
// but for its beginning. Every user of the host can dial every guest, so a host first shows a token.
// The guest was told the digest of it on its kernel command line, which is no secret.

// portHosts is where the agent listens.
const portHosts uint32 = 0x40000010

const (
	hostCID = 2
	anyCID  = 0xffffffff
)

// tokenSize is the length of a token in bytes.
const tokenSize = 26

// NewToken creates the token of a guest.
func NewToken() string { return rand.Text()[:tokenSize] }

// TokenDigest is what the guest is told of a token: the key "strata.vsock" of its command line.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// DialVSock connects to the agent of the guest with a context id; what it gives is for [Connect]. It
// waits for as long as ctx allows for a guest that does not move. A guest in which nobody listens is
// an error at once, unless it has no driver.
func DialVSock(ctx context.Context, cid uint32, token string) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, cid, portHosts, nil)
	for errors.Is(err, syscall.ETIMEDOUT) && ctx.Err() == nil { // the kernel's limit, of 2 s
		conn, err = vsock.DialContext(ctx, cid, portHosts, nil)
	}
	if err == nil {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		_, err = io.WriteString(conn, token)
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, fmt.Errorf("vsock to the guest with context id %d: %w", cid, err)
	}
	return conn, nil
}

// ListenVSock is the guest's end: it awaits hosts, for [ServeHosts]. Other guests, and programs in this
// one, are turned away.
func ListenVSock() (net.Listener, error) {
	l, err := vsock.ListenContextID(anyCID, portHosts, nil)
	if err != nil {
		return nil, fmt.Errorf("await hosts on vsock: %w", err)
	}
	return hostListener{l}, nil
}

type hostListener struct{ net.Listener }

func (l hostListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == hostCID {
			return c, nil
		}
		c.Close()
	}
}

const (
	tokenTime    = 10 * time.Second // for a host to show the token
	maxStrangers = 64               // connections that have not shown it yet
	acceptPause  = 100 * time.Millisecond
)

// ServeHosts calls serve, in a goroutine of its own, with the session of each host that connects to l
// and shows the token of that digest. The stream ends (io.EOF) when the host hangs up; serve must close
// it. ServeHosts returns when l is closed; sessions go on.
func ServeHosts(l net.Listener, digest string, serve func(io.ReadWriteCloser)) {
	strangers := make(chan struct{}, maxStrangers)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the guest is out of something, which passes
			time.Sleep(acceptPause)
			continue
		}
		select {
		case strangers <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		go func() {
			defer conn.Close()
			known := showsToken(conn, digest)
			<-strangers
			if known {
				// It ends with an error when the host hangs up, which is of no interest.
				_ = ServePort(hostConn{conn}, func(session io.ReadWriteCloser) {
					defer conn.Close() // a host whose session ended from within is to know
					serve(session)
				})
			}
		}()
	}
}

func showsToken(conn net.Conn, digest string) bool {
	var token [tokenSize]byte
	_ = conn.SetReadDeadline(time.Now().Add(tokenTime))
	if _, err := io.ReadFull(conn, token[:]); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Time{})
	return subtle.ConstantTimeCompare([]byte(TokenDigest(string(token[:]))), []byte(digest)) == 1
}

// hostConn is a connection as a port: one that no other host comes to.
type hostConn struct{ net.Conn }

func (c hostConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		err = net.ErrClosed
	}
	return n, err
}
