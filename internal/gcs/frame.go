package gcs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MessageType is the type of a message: bits 31-28 are the kind, 27-20 the category, 19-8 the number, 7-0 the version.
type MessageType uint32

// The requests of the protocol. The type of an answer is that of its request with kind 2.
const (
	TypeCreate                MessageType = 0x10100101
	TypeStart                 MessageType = 0x10100201
	TypeShutdownGraceful      MessageType = 0x10100301
	TypeShutdownForced        MessageType = 0x10100401
	TypeExecuteProcess        MessageType = 0x10100501
	TypeWaitForProcess        MessageType = 0x10100601
	TypeSignalProcess         MessageType = 0x10100701
	TypeResizeConsole         MessageType = 0x10100801
	TypeGetProperties         MessageType = 0x10100901
	TypeModifySettings        MessageType = 0x10100a01
	TypeNegotiateProtocol     MessageType = 0x10100b01
	TypeDumpStacks            MessageType = 0x10100c01
	TypeDeleteContainerState  MessageType = 0x10100d01
	TypeUpdateContainer       MessageType = 0x10100e01 // no Linux guest serves it
	TypeLifecycleNotification MessageType = 0x10100f01 // no Linux guest serves it
	TypeNotification          MessageType = 0x30100101 // guest to host, id 0
)

const (
	kindMask     MessageType = 0xf0000000
	kindRequest  MessageType = 0x10000000
	kindResponse MessageType = 0x20000000
)

// IsRequest reports whether t is a request.
func (t MessageType) IsRequest() bool { return t&kindMask == kindRequest }

// IsResponse reports whether t is the answer to a request.
func (t MessageType) IsResponse() bool { return t&kindMask == kindResponse }

// Response is the type of the answer to the request t.
func (t MessageType) Response() MessageType { return t&^kindMask | kindResponse }

var typeNames = map[MessageType]string{
	TypeCreate: "Create", TypeStart: "Start", TypeShutdownGraceful: "ShutdownGraceful",
	TypeShutdownForced: "ShutdownForced", TypeExecuteProcess: "ExecuteProcess",
	TypeWaitForProcess: "WaitForProcess", TypeSignalProcess: "SignalProcess",
	TypeResizeConsole: "ResizeConsole", TypeGetProperties: "GetProperties",
	TypeModifySettings: "ModifySettings", TypeNegotiateProtocol: "NegotiateProtocol",
	TypeDumpStacks: "DumpStacks", TypeDeleteContainerState: "DeleteContainerState",
	TypeUpdateContainer: "UpdateContainer", TypeLifecycleNotification: "LifecycleNotification",
	TypeNotification: "Notification",
}

func (t MessageType) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	if s, ok := typeNames[t&^kindMask|kindRequest]; ok && t.IsResponse() {
		return s + " answer"
	}
	return fmt.Sprintf("message type %#x", uint32(t))
}

// Header precedes the payload of every message.
type Header struct {
	Type MessageType
	ID   uint64 // a response has the id of its request; a notification has 0
}

// HeaderSize is the size of the header on the wire, in bytes.
const HeaderSize = 16

// The size of a message, header included, in bytes.
const (
	DefaultMaxMessage = 0x10000  // what hosts accept
	LargestMaxMessage = 16 << 20 // no configuration goes beyond
)

// ErrFraming: the peer sent an invalid message header. The connection cannot be used any more.
var ErrFraming = errors.New("the peer broke the message framing")

// ErrTooLarge: a message is larger than the peer accepts, and was not sent.
var ErrTooLarge = errors.New("message too large")

func maxMessage(n int) int {
	if n <= HeaderSize {
		return DefaultMaxMessage
	}
	return min(n, LargestMaxMessage)
}

// ReadMessage reads one message of at most limit bytes, header included (0: [DefaultMaxMessage]).
// Nothing is allocated before the size is known to be within the limit. At a clean end of the stream
// the error is io.EOF.
func ReadMessage(r io.Reader, limit int) (Header, []byte, error) {
	var raw [HeaderSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return Header{}, nil, err
	}
	h := Header{MessageType(binary.LittleEndian.Uint32(raw[0:])), binary.LittleEndian.Uint64(raw[8:])}
	size := binary.LittleEndian.Uint32(raw[4:])
	limit = maxMessage(limit)
	if size < HeaderSize || uint64(size) > uint64(limit) {
		return h, nil, fmt.Errorf("%w: %v has size %d, allowed are %d to %d bytes",
			ErrFraming, h.Type, size, HeaderSize, limit)
	}
	body := make([]byte, size-HeaderSize)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, err
	}
	return h, body, nil
}

// EncodeMessage creates the bytes of a message of at most limit bytes (0: [DefaultMaxMessage]).
func EncodeMessage(h Header, payload any, limit int) ([]byte, error) {
	buf := bytes.NewBuffer(make([]byte, HeaderSize, 512))
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(payload); err != nil {
		return nil, fmt.Errorf("encode %v: %w", h.Type, err)
	}
	b := buf.Bytes()
	if len(b) > maxMessage(limit) {
		return nil, fmt.Errorf("%w: %v takes %d bytes, the limit is %d", ErrTooLarge, h.Type, len(b), maxMessage(limit))
	}
	binary.LittleEndian.PutUint32(b[0:], uint32(h.Type))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	binary.LittleEndian.PutUint64(b[8:], h.ID)
	return b, nil
}
