package standin

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"unicode/utf16"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm/hcs"
)

func utf16Text(buf []uint16) string {
	for i, c := range buf {
		if c == 0 {
			return string(utf16.Decode(buf[:i]))
		}
	}
	return string(utf16.Decode(buf))
}

func res(h hcs.HRESULT, outs ...any) answer { return answer{hr: uint32(h), outs: outs} }

// onHandle is a function that takes a handle and a text and returns a document.
func onHandle(do func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT)) function {
	return func(w *world, r *reader) answer {
		h := hcs.Handle(r.number())
		result, code := do(w.systems)(h, r.text())
		return res(code, result)
	}
}

func justHandle(do func(s hcs.API) func(hcs.Handle) hcs.HRESULT) function {
	return func(w *world, r *reader) answer { return res(do(w.systems)(hcs.Handle(r.number()))) }
}

var systemFunctions = map[string]function{
	"HcsCreateComputeSystem": func(w *world, r *reader) answer {
		id := r.text()
		h, result, code := w.systems.CreateComputeSystem(id, r.text())
		return res(code, uint64(h), result)
	},
	"HcsOpenComputeSystem": func(w *world, r *reader) answer {
		h, result, code := w.systems.OpenComputeSystem(r.text())
		return res(code, uint64(h), result)
	},
	"HcsCloseComputeSystem": justHandle(func(s hcs.API) func(hcs.Handle) hcs.HRESULT { return s.CloseComputeSystem }),
	"HcsStartComputeSystem": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.StartComputeSystem
	}),
	"HcsShutdownComputeSystem": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.ShutdownComputeSystem
	}),
	"HcsTerminateComputeSystem": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.TerminateComputeSystem
	}),
	"HcsModifyComputeSystem": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.ModifyComputeSystem
	}),
	"HcsGetComputeSystemProperties": func(w *world, r *reader) answer {
		h := hcs.Handle(r.number())
		properties, result, code := w.systems.GetComputeSystemProperties(h, r.text())
		return res(code, properties, result)
	},
	"HcsEnumerateComputeSystems": func(w *world, r *reader) answer {
		systems, result, code := w.systems.EnumerateComputeSystems(r.text())
		return res(code, systems, result)
	},
	"HcsGetServiceProperties": func(w *world, r *reader) answer {
		properties, result, code := w.systems.GetServiceProperties(r.text())
		return res(code, properties, result)
	},
	"HcsRegisterComputeSystemCallback": func(w *world, r *reader) answer {
		return w.register(hcs.Handle(r.number()), w.systems.RegisterComputeSystemCallback)
	},
	"HcsRegisterProcessCallback": func(w *world, r *reader) answer {
		return w.register(hcs.Handle(r.number()), w.systems.RegisterProcessCallback)
	},
	"HcsUnregisterComputeSystemCallback": func(w *world, r *reader) answer {
		return w.unregister(hcs.Handle(r.number()), w.systems.UnregisterComputeSystemCallback)
	},
	"HcsUnregisterProcessCallback": func(w *world, r *reader) answer {
		return w.unregister(hcs.Handle(r.number()), w.systems.UnregisterProcessCallback)
	},
	"HcsCreateProcess": func(w *world, r *reader) answer {
		h := hcs.Handle(r.number())
		info, result, code := w.systems.CreateProcess(h, r.text())
		w.mu.Lock()
		defer w.mu.Unlock()
		outs := []any{uint64(info.Process), uint64(info.ID)}
		for i, s := range []io.Closer{info.Stdin, info.Stdout, info.Stderr} {
			if s != nil {
				w.streams[streamKey{info.Process, uint64(i)}] = s
			}
			outs = append(outs, bit(s != nil))
		}
		return res(code, append(outs, result)...)
	},
	"(stream)": func(w *world, r *reader) answer {
		k := streamKey{hcs.Handle(r.number()), r.number()}
		w.mu.Lock()
		defer w.mu.Unlock()
		s := w.streams[k]
		delete(w.streams, k)
		if s == nil {
			return hr(invalid)
		}
		return answer{then: func(c net.Conn) error { return pump(c, s) }}
	},
	"HcsSignalProcess": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.SignalProcess
	}),
	"HcsModifyProcess": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return s.ModifyProcess
	}),
	"HcsTerminateProcess": onHandle(func(s hcs.API) func(hcs.Handle, string) (string, hcs.HRESULT) {
		return func(h hcs.Handle, _ string) (string, hcs.HRESULT) { return s.TerminateProcess(h) }
	}),
	"HcsGetProcessProperties": func(w *world, r *reader) answer {
		properties, result, code := w.systems.GetProcessProperties(hcs.Handle(r.number()))
		return res(code, properties, result)
	},
	"HcsCloseProcess": justHandle(func(s hcs.API) func(hcs.Handle) hcs.HRESULT { return s.CloseProcess }),
}

// streamKey is one stream of a process that its creator has not fetched yet: 0 input, 1 output, 2 errors.
type streamKey struct {
	process hcs.Handle
	n       uint64
}

// pump moves bytes between a connection and a stream until either ends.
func pump(c net.Conn, s io.Closer) error {
	var err error
	switch s := s.(type) {
	case io.Reader:
		_, err = io.Copy(c, s)
	case io.Writer:
		_, err = io.Copy(s, c)
	}
	return errors.Join(err, s.Close())
}

// queued is how many notifications may wait for a slow program.
const queued = 256

// register passes notifications on over the connection of the registration. They come one by one:
// the next is sent when the program's function has returned from the last.
func (w *world) register(about hcs.Handle,
	register func(hcs.Handle, func(hcs.Notification)) (hcs.Handle, hcs.HRESULT)) answer {
	queue := make(chan hcs.Notification, queued)
	callback, code := register(about, func(n hcs.Notification) {
		select {
		case queue <- n:
		default: // the program does not take them: it has its own time limits
		}
	})
	if code != hcs.OK {
		return res(code, uint64(0))
	}
	return answer{outs: []any{uint64(callback)}, then: func(c net.Conn) error {
		w.mu.Lock()
		w.watches[callback] = c
		w.mu.Unlock()
		ended := make(chan struct{})
		acks := make(chan struct{})
		go func() { // reading tells when the other side goes
			defer close(ended)
			var b [1]byte
			for {
				if _, err := io.ReadFull(c, b[:]); err != nil {
					return
				}
				acks <- struct{}{}
			}
		}()
		defer c.Close()
		for {
			select {
			case <-ended:
				return nil
			case n := <-queue:
				body := appendValue(appendValue(appendValue(nil, uint64(n.Type)), uint64(n.Status)), n.Data)
				if err := writeMessage(c, body); err != nil {
					return err
				}
				select {
				case <-acks:
				case <-ended:
					return nil
				}
			}
		}
	}}
}

func (w *world) unregister(callback hcs.Handle, unregister func(hcs.Handle) hcs.HRESULT) answer {
	code := unregister(callback)
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.watches[callback]; c != nil {
		c.Close()
		delete(w.watches, callback)
	}
	return res(code)
}

// hold keeps a disk open as long as its handle is: the handle is the connection.
func (w *world) hold(c net.Conn, d wclayer.Disk) error {
	defer w.platform.CloseDisk(d)
	var handle uint64
	if err := binary.Read(c, binary.LittleEndian, &handle); err != nil {
		return err
	}
	w.mu.Lock()
	w.disks[handle] = diskRef{disk: d}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.disks[handle].disk == d {
			delete(w.disks, handle)
		}
	}()
	if err := writeMessage(c, nil); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}
