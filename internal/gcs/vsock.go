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

// Over vsock our agent listens and hosts dial, each with its own connection. The agent uses such a connection like a
// virtio-serial port, with sessions and multiplexer. But because every user of the host can dial every guest, a host
// must first send a token. The guest knows its digest from the kernel command line, which is not secret.

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

// TokenDigest returns the digest of a token for the guest's kernel parameter strata.vsock.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// DialVSock connects to the agent of the guest with a CID, for [Connect]. If the guest does not respond, it waits until
// ctx ends. If nothing listens in the guest it fails at once, unless the guest has no vsock driver.
func DialVSock(ctx context.Context, cid uint32, token string) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, cid, portHosts, nil)
	for errors.Is(err, syscall.ETIMEDOUT) && ctx.Err() == nil { // the kernel's timeout of 2 s
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

// ListenVSock listens in the guest for hosts, for [ServeHosts]. Connections from other guests and from programs in this
// guest are refused.
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
	tokenTime    = 10 * time.Second // for a host to send the token
	maxStrangers = 64               // connections that have not sent it yet
	acceptPause  = 100 * time.Millisecond
)

// ServeHosts calls serve, in a new goroutine, with the session of each host that connects to l and sends the token of
// that digest. serve must close the stream, which returns io.EOF when the host disconnects. ServeHosts returns when l
// is closed; sessions continue.
func ServeHosts(l net.Listener, digest string, serve func(io.ReadWriteCloser)) {
	strangers := make(chan struct{}, maxStrangers)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a temporary lack of a resource
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
				// Returns an error when the host disconnects; ignored.
				_ = ServePort(hostConn{conn}, func(session io.ReadWriteCloser) {
					defer conn.Close() // tells the host when the agent ends the session
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

// hostConn is a connection as the port of ServePort, with one host only.
type hostConn struct{ net.Conn }

func (c hostConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		err = net.ErrClosed
	}
	return n, err
}
