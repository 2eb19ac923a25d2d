package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"
)

// A byte stream such as a virtio-serial port may contain stale bytes of an earlier session, and either end may
// disconnect at any byte. So each session begins with a handshake:
//
//	host  -> guest: HELLO nonce, repeatedly
//	guest -> host:  READY nonce, for each new nonce
//	host  -> guest: START nonce, repeatedly
//	guest -> host:  BEGUN nonce, then the bytes of the session
//
// The host discards what comes before READY and BEGUN with its own, random nonce. It repeats its messages because the
// guest may notice the end of the previous host late, after it has seen this host's HELLO, and then resets the
// handshake. In the other direction the byte 0xff is never sent alone within a session: it is doubled to "0xff 0x00",
// and "0xff 0x01" begins a frame. The guest therefore recognises a HELLO wherever the previous session was cut off, and
// content can never be mistaken for one.

const (
	escape     = 0xff
	escapeByte = 0x00 // after escape: the byte 0xff itself
	escapeMark = 0x01 // after escape: a frame follows
	nonceSize  = 32   // hex digits
	markSize   = 1 + nonceSize + 8
	markHello  = 'H'
	markStart  = 'S'
	markReady  = 'R'
	markBegun  = 'B'
)

// maxStale is how many stale bytes a host discards during the handshake.
const maxStale = 8 << 20

// helloInterval is how often a host repeats HELLO and START.
const helloInterval = 50 * time.Millisecond

func markFrame(kind byte, nonce string) []byte {
	b := append([]byte{escape, escapeMark, kind}, nonce...)
	sum := crc32.ChecksumIEEE(b[2:])
	return append(b, fmt.Sprintf("%08x", sum)...)
}

// parseMark reads the part of a frame that follows escape and escapeMark.
func parseMark(b []byte) (kind byte, nonce string, ok bool) {
	if len(b) != markSize {
		return 0, "", false
	}
	body, sum := b[:1+nonceSize], b[1+nonceSize:]
	if string(sum) != fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) {
		return 0, "", false
	}
	return body[0], string(body[1:]), true
}

// hostHandshake begins a session over conn and returns the reader of the session. If ctx ends first, conn is closed.
func hostHandshake(ctx context.Context, conn net.Conn) (io.Reader, error) {
	var raw [nonceSize / 2]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, err
	}
	nonce := hex.EncodeToString(raw[:])
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var rest []byte
	var err error
	for _, step := range []struct{ say, want byte }{{markHello, markReady}, {markStart, markBegun}} {
		sayCtx, heard := context.WithCancel(ctx)
		said := make(chan error, 1)
		go func() { said <- repeat(sayCtx, conn, markFrame(step.say, nonce)) }()
		rest, err = awaitMark(io.MultiReader(bytes.NewReader(rest), conn), markFrame(step.want, nonce))
		heard()
		if err != nil {
			break
		}
		if err = <-said; err != nil {
			break
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the guest agent did not answer: %w", context.Cause(ctx))
		}
		return nil, err
	}
	if !stop() {
		return nil, fmt.Errorf("the guest agent did not answer in time: %w", context.Cause(ctx))
	}
	return io.MultiReader(bytes.NewReader(rest), conn), nil
}

func repeat(ctx context.Context, conn net.Conn, frame []byte) error {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for {
		if _, err := conn.Write(frame); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// awaitMark discards what comes before a frame and returns what was read after it.
func awaitMark(r io.Reader, want []byte) ([]byte, error) {
	buf := make([]byte, 0, 8192)
	for stale := 0; ; {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf, want); i >= 0 {
			return buf[i+len(want):], nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if keep := len(want) - 1; len(buf) > keep {
			stale += len(buf) - keep
			buf = append(buf[:0], buf[len(buf)-keep:]...)
		}
		if stale > maxStale {
			return nil, fmt.Errorf("%w: %d bytes came and none of them is the agent's answer", ErrProtocol, stale)
		}
	}
}

// hostStream is the host's end of a session.
type hostStream struct {
	net.Conn
	r io.Reader
}

func (s *hostStream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *hostStream) Write(p []byte) (int, error) {
	if bytes.IndexByte(p, escape) < 0 {
		return s.Conn.Write(p)
	}
	b := make([]byte, 0, len(p)+len(p)/8+16)
	for _, c := range p {
		b = append(b, c)
		if c == escape {
			b = append(b, escapeByte)
		}
	}
	if _, err := s.Conn.Write(b); err != nil {
		return 0, err // how much got through is of no interest: the session is over
	}
	return len(p), nil
}
