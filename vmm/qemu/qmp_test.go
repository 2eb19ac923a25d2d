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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/vmm"
)

// serve plays QEMU: it greets, then answers each command as answer says. An empty answer is none.
func serve(t *testing.T, conn net.Conn, answer func(command string, id uint64) string) {
	t.Helper()
	go func() {
		defer conn.Close()
		if _, err := io.WriteString(conn, `{"QMP":{"version":{}}}`+"\r\n"); err != nil {
			return
		}
		in := bufio.NewScanner(conn)
		for in.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(in.Bytes(), &c) != nil {
				return
			}
			text := fmt.Sprintf(`{"return":{},"id":%d}`, c.ID)
			if c.Execute != "qmp_capabilities" {
				text = answer(c.Execute, c.ID)
			}
			if text == "" {
				continue
			}
			if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
				return
			}
		}
	}()
}

func scripted(t *testing.T, answer func(string, uint64) string, onEvent func(string, json.RawMessage)) *qmpClient {
	t.Helper()
	a, b := net.Pipe()
	serve(t, b, answer)
	if onEvent == nil {
		onEvent = func(string, json.RawMessage) {}
	}
	q, err := newQMPClient(t.Context(), a, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.close(); <-q.done })
	return q
}

func TestQMPAnswersFindTheirCommands(t *testing.T) {
	// Two commands are under way at a time and answered in the wrong order, with events between.
	var mu sync.Mutex
	var held string
	q := scripted(t, func(command string, id uint64) string {
		mu.Lock()
		defer mu.Unlock()
		text := fmt.Sprintf(`{"event":"X","data":{}}`+"\n"+`{"return":%q,"id":%d}`, command, id)
		if held == "" {
			held = text
			return ""
		}
		text, held = text+"\n"+held, ""
		return text
	}, nil)
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			var got string
			want := fmt.Sprint("command-", i)
			if err := q.do(t.Context(), want, nil, &got); err != nil || got != want {
				t.Errorf("%s: %q %v", want, got, err)
			}
		})
	}
	wg.Wait()
}

// TestQMPLongAnswer: the list of what a full machine has open is long.
func TestQMPLongAnswer(t *testing.T) {
	const nodes, each = 20_000, 550
	long := strings.Repeat("x", nodes*each)
	q := scripted(t, func(_ string, id uint64) string { return fmt.Sprintf(`{"return":%q,"id":%d}`, long, id) }, nil)
	var got string
	if err := q.do(t.Context(), "query-named-block-nodes", nil, &got); err != nil || got != long {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
}

func TestQMPEventsComeInOrder(t *testing.T) {
	var got []string
	q := scripted(t, func(_ string, id uint64) string {
		return fmt.Sprintf(`{"event":"A","data":{"n":1}}`+"\n"+`{"event":"B"}`+"\n"+`{"return":{},"id":%d}`, id)
	}, func(name string, data json.RawMessage) { got = append(got, name+string(data)) })
	if err := q.do(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{`A{"n":1}`, "B"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestQMPErrorsMatchSentinels(t *testing.T) {
	for desc, want := range map[string]error{
		"Could not open '/x': Permission denied":                       vmm.ErrAccessDenied,
		"Could not open '/x': No such file or directory":               fs.ErrNotExist,
		"Failed to get \"write\" lock":                                 vmm.ErrBusy,
		"Node 'a' is busy: node is in use as 'file' of 'b', is in use": vmm.ErrBusy,
		"Failed to find node with node-name='a'":                       errNoDevice,
	} {
		q := scripted(t, func(_ string, id uint64) string {
			b, _ := json.Marshal(desc)
			return fmt.Sprintf(`{"error":{"class":"GenericError","desc":%s},"id":%d}`, b, id)
		}, nil)
		err := q.do(t.Context(), "blockdev-add", nil, nil)
		if !errors.Is(err, want) || !known(err) || !strings.Contains(err.Error(), "blockdev-add") ||
			!strings.Contains(err.Error(), desc) {
			t.Errorf("%s: %v", desc, err)
		}
	}
}

func TestQMPSilence(t *testing.T) {
	q := scripted(t, func(command string, id uint64) string {
		if command == "silent" {
			return ""
		}
		return fmt.Sprintf(`{"return":{},"id":%d}`, id)
	}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.do(ctx, "silent", nil, nil); !errors.Is(err, context.DeadlineExceeded) || known(err) {
		t.Errorf("no answer: %v", err)
	}
	if err := q.do(ctx, "late", nil, nil); !errors.Is(err, errNotSent) {
		t.Errorf("an ended context: %v", err)
	}
	if err := q.do(t.Context(), "next", nil, nil); err != nil {
		t.Errorf("after a call that was given up: %v", err)
	}
	if len(q.waiting) != 0 {
		t.Errorf("%d calls are still waited for", len(q.waiting))
	}
}

func TestQMPThatDoesNotRead(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	ready := make(chan struct{})
	go func() {
		// It answers the handshake and then reads no more.
		in := bufio.NewReader(b)
		_, _ = io.WriteString(b, `{"QMP":{}}`+"\n")
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(b, `{"return":{},"id":1}`+"\n")
		close(ready)
	}()
	q, err := newQMPClient(t.Context(), a, func(string, json.RawMessage) {})
	if err != nil {
		t.Fatal(err)
	}
	<-ready
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.do(ctx, "x", nil, nil); !errors.Is(err, errNotSent) {
		t.Errorf("nothing was read, yet: %v", err)
	}
	q.close()
	<-q.done
	if err := q.do(t.Context(), "x", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestQMPGreetings(t *testing.T) {
	for name, greeting := range map[string]string{
		"nothing": "", "not JSON": "SSH-2.0\n", "no greeting": `{"return":{}}` + "\n",
		"endless": strings.Repeat(" ", maxQMPLine+1), "nested": strings.Repeat("[", 1<<20) + "\n",
	} {
		a, b := net.Pipe()
		go func() {
			_, _ = io.WriteString(b, greeting) // the client may have gone away already
			b.Close()
		}()
		if _, err := newQMPClient(t.Context(), a, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := newQMPClient(ctx, a, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

func FuzzQMPReader(f *testing.F) {
	for _, s := range []string{
		`{"QMP":{"version":{"qemu":{"micro":22}}}}` + "\r\n", `{"return":{},"id":1}` + "\n",
		`{"event":"DEVICE_DELETED","data":{"device":"scsi0-1"}}` + "\n" + `{"error":{"class":"C","desc":"D"},"id":2}` + "\n",
		"\n\n{}\n", `{"id":-1}` + "\n", `{"id":1e99}` + "\n", "[]\n", "{",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &Machine{unplugged: map[string]chan struct{}{"scsi0-1": make(chan struct{})}}
		r := newQMPReader(bytes.NewReader(b))
		for n := 0; ; n++ {
			msg, err := r.next()
			if err != nil {
				return
			}
			if n > bytes.Count(b, []byte("\n")) {
				t.Fatalf("%d messages out of fewer lines", n)
			}
			m.event(msg.Event, msg.Data)
		}
	})
}
