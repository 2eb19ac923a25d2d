package hostiles

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/stratavm/strata/internal/gcs"
)

// attacks are the modes of a hostile guest. Each begins at a request and returns when the host does not listen
// any more, or when it has nothing more to say.
var attacks = map[string]func(ctx context.Context, s *session, h gcs.Header, payload []byte){
	"stall":   func(context.Context, *session, gcs.Header, []byte) {},
	"flood":   flood,
	"huge":    huge,
	"garbage": garbage,
	"noise":   noise,
	"lies":    lies,
	"endless": endless,
	"streams": streams,
	"chatter": chatter,
}

// Modes are the names of all attacks.
var Modes = []string{"stall", "flood", "huge", "garbage", "noise", "lies", "endless", "streams", "chatter"}

// flood sends notifications, and answers to ids never issued, without end.
func flood(_ context.Context, s *session, h gcs.Header, _ []byte) {
	long := strings.Repeat("x", 40<<10)
	for n := uint64(0); ; n++ {
		ok := s.send(gcs.Header{Type: gcs.TypeNotification}, &gcs.Notification{ContainerId: long, Type: "UnexpectedExit"})
		if ok && n > 100 {
			ok = s.send(gcs.Header{Type: h.Type.Response(), ID: 1<<40 + n}, &gcs.EmptyResponse{})
		}
		if !ok {
			return
		}
	}
}

// huge answers with a message that claims to have 4 GiB.
func huge(_ context.Context, s *session, h gcs.Header, _ []byte) {
	b := binary.LittleEndian.AppendUint32(nil, uint32(h.Type.Response()))
	b = binary.LittleEndian.AppendUint32(b, 0xffffffff)
	b = binary.LittleEndian.AppendUint64(b, h.ID)
	s.write.Lock()
	defer s.write.Unlock()
	for _, err := s.bridge.Write(b); err == nil; _, err = s.bridge.Write(make([]byte, 64<<10)) {
	}
}

func randomBytes() []byte {
	b := make([]byte, 16<<10)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// garbage sends random bytes where messages are awaited.
func garbage(_ context.Context, s *session, _ gcs.Header, _ []byte) {
	s.write.Lock()
	defer s.write.Unlock()
	for _, err := s.bridge.Write(randomBytes()); err == nil; _, err = s.bridge.Write(randomBytes()) {
	}
}

// noise sends random bytes below the multiplexer.
func noise(_ context.Context, s *session, _ gcs.Header, _ []byte) {
	for _, err := s.stream.Write(randomBytes()); err == nil; _, err = s.stream.Write(randomBytes()) {
	}
}

// lies answers each request with success, and with what the host did not ask for: the first answers are of the right
// shape, later ones of none.
func lies(_ context.Context, s *session, h gcs.Header, _ []byte) {
	for {
		s.answer++
		if !s.send(gcs.Header{Type: h.Type.Response(), ID: h.ID}, lie(h.Type, s.answer)) {
			return
		}
		var err error
		if h, _, err = gcs.ReadMessage(s.bridge, gcs.LargestMaxMessage); err != nil {
			return
		}
	}
}

func lie(t gcs.MessageType, n int) any {
	long := strings.Repeat("\x1b[2J\u202e", 5<<10)
	switch n % 6 {
	case 0:
		return json.RawMessage(`{"Result": {"a": [1]}, "ProcessId": "none", "Properties": 7, "Capabilities": []}`)
	case 1:
		return json.RawMessage(`[[[[]]]]`)
	}
	switch t {
	case gcs.TypeNegotiateProtocol:
		return &gcs.NegotiateResponse{Version: gcs.ProtocolVersion, Capabilities: gcs.Capabilities{
			RuntimeOsType: "linux", SendHostCreateMessage: true, SendHostStartMessage: true,
			GuestDefinedCapabilities: gcs.GuestDefinedCapabilities{StrataAgent: 0xffffffff}}}
	case gcs.TypeGetProperties:
		var p gcs.Properties
		for i := range 50 {
			p.StrataMounts = append(p.StrataMounts, gcs.Mount{Path: fmt.Sprintf("/../%d%s", i, long[:200]), Kind: "overlay",
				Controller: 200, Lun: 200, ContainerID: "../../x", ScratchPath: "/run/../.."},
				gcs.Mount{Path: "/", Kind: "scsi"}, gcs.Mount{Path: "/run/a", Kind: "pmem", Slot: 0xffffffff})
		}
		text, _ := gcs.EncodeText(p)
		return &gcs.PropertiesResponse{Properties: text}
	case gcs.TypeExecuteProcess:
		return &gcs.ExecuteResponse{ProcessId: 0xffffffff}
	case gcs.TypeWaitForProcess:
		return &gcs.WaitResponse{ExitCode: 0xfffffffe}
	}
	return &gcs.EmptyResponse{ResponseBase: gcs.ResponseBase{ActivityId: long, ErrorMessage: long}}
}

// endless answers each request for a page of mounts with a large one and says that there are more.
func endless(_ context.Context, s *session, h gcs.Header, payload []byte) {
	path := "/" + strings.Repeat("x", 60<<10)
	for {
		var r gcs.PropertiesRequest
		var q gcs.PropertyQuery
		if json.Unmarshal(payload, &r) == nil && r.Query.Decode(&q) == nil && h.Type == gcs.TypeGetProperties {
			text, _ := gcs.EncodeText(gcs.Properties{StrataMounts: []gcs.Mount{{Path: path, Kind: "scsi"}},
				StrataNext: q.StrataOffset + 1})
			if !s.send(gcs.Header{Type: h.Type.Response(), ID: h.ID}, &gcs.PropertiesResponse{Properties: text}) {
				return
			}
		}
		var err error
		if h, payload, err = gcs.ReadMessage(s.bridge, gcs.LargestMaxMessage); err != nil {
			return
		}
	}
}

// streams dials ports of the host at random, without end, and writes to them.
func streams(ctx context.Context, s *session, _ gcs.Header, _ []byte) {
	for n := 0; ; n++ {
		port := gcs.PortStdio + rand.Uint32N(64)
		if n%2 == 0 {
			port = rand.Uint32()
		}
		conn, err := s.mux.Dial(ctx, port)
		if err != nil {
			return
		}
		go func() { _, _ = conn.Write(make([]byte, 64<<10)) }() // until the host, or the session, ends it
	}
}

// chatter starts a program that never ends and never stops writing, and answers nothing else.
func chatter(ctx context.Context, s *session, h gcs.Header, payload []byte) {
	var r gcs.ExecuteRequest
	if json.Unmarshal(payload, &r) != nil || r.Settings.VsockStdioRelaySettings == nil {
		return
	}
	ports := *r.Settings.VsockStdioRelaySettings
	for _, port := range []uint32{ports.StdIn, ports.StdOut, ports.StdErr} {
		if port == 0 {
			continue
		}
		conn, err := s.mux.Dial(ctx, port)
		if err != nil {
			return
		}
		go func() {
			for _, err := conn.Write(randomBytes()); err == nil; _, err = conn.Write(randomBytes()) {
			}
		}()
	}
	s.send(gcs.Header{Type: h.Type.Response(), ID: h.ID}, &gcs.ExecuteResponse{ProcessId: 1})
}
