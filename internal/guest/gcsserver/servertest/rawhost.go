// Package servertest has a host for tests of the guest's protocol server.
package servertest

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/stratavm/strata/internal/gcs"
)

// RawHost is a host that writes requests as they come, one at a time.
type RawHost struct {
	t             testing.TB
	conn          net.Conn
	id            uint64
	Notifications []gcs.Notification // that came before an answer
}

// New returns a host at its end of a bridge.
func New(t testing.TB, conn net.Conn) *RawHost { return &RawHost{t: t, conn: conn} }

func (h *RawHost) read() (gcs.Header, []byte) {
	h.t.Helper()
	head, payload, err := gcs.ReadMessage(h.conn, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if head.Type == gcs.TypeNotification {
		var n gcs.Notification
		if err := json.Unmarshal(payload, &n); err != nil || head.ID != 0 {
			h.t.Fatal(head, err)
		}
		h.Notifications = append(h.Notifications, n)
	}
	return head, payload
}

// Ask sends a request and returns what the answer to it has in common with all answers.
func (h *RawHost) Ask(typ gcs.MessageType, req any) (resp gcs.ResponseBase) {
	h.t.Helper()
	h.id++
	b, err := gcs.EncodeMessage(gcs.Header{Type: typ, ID: h.id}, req, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.conn.Write(b); err != nil {
		h.t.Fatal(err)
	}
	for {
		head, payload := h.read()
		if head.Type == gcs.TypeNotification {
			continue
		}
		if head.ID != h.id || head.Type != typ.Response() {
			h.t.Fatalf("the answer to %v %d is %v %d", typ, h.id, head.Type, head.ID)
		}
		if err := json.Unmarshal(payload, &resp); err != nil {
			h.t.Fatal(err)
		}
		return resp
	}
}

// Notification returns the first notification that has come, or waits for one.
func (h *RawHost) Notification() (n gcs.Notification) {
	h.t.Helper()
	for len(h.Notifications) == 0 {
		h.read()
	}
	n = h.Notifications[0]
	h.Notifications = h.Notifications[1:]
	return n
}
