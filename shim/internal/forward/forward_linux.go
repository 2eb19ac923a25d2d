// Package forward relays connections to loopback addresses of a network namespace to another address. Port forwarding
// (kubectl port-forward) connects to loopback in the pod's network namespace on the host, but the pod's programs listen
// in the VM.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/nsthread"
)

const (
	maxConnections = 256 // at a time
	dialTimeout    = 10 * time.Second
	retry          = time.Second // the pause after Accept failed
)

// Forwarder relays TCP connections until it is closed.
type Forwarder struct {
	to       netip.Addr
	log      *slog.Logger
	listener net.Listener
	owned    []io.Closer // BPF map, program and link
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// New relays TCP connections to 127.0.0.0/8 in a network namespace to the same ports of another address, which is
// dialled from the caller's network namespace. It needs Linux 5.9, CAP_BPF and CAP_NET_ADMIN. The caller must call
// Close; the kernel cleans up when the process ends.
func New(namespace *os.File, to netip.Addr, log *slog.Logger) (_ *Forwarder, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &Forwarder{to: to, log: log, cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("forward ports: %w", err), f.Close())
		}
	}()
	if err = nsthread.Run(namespace, func() (err error) {
		var l net.ListenConfig
		l.SetMultipathTCP(false) // a sockmap takes no MPTCP socket
		f.listener, err = l.Listen(ctx, "tcp4", "127.0.0.1:0")
		return err
	}); err != nil {
		return nil, err
	}
	raw, err := f.listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return nil, err
	}
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	f.owned = append(f.owned, sockets)
	var slot uint32 // the listener's key; its value is a file descriptor
	if cerr := raw.Control(func(fd uintptr) { err = sockets.Put(slot, uint64(fd)) }); cerr != nil || err != nil {
		return nil, errors.Join(err, cerr)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup,
		License: "Apache-2.0", Instructions: lookup(sockets.FD())})
	if err != nil {
		return nil, err
	}
	f.owned = append(f.owned, program)
	attached, err := link.AttachNetNs(int(namespace.Fd()), program)
	if err != nil {
		return nil, err
	}
	f.owned = append(f.owned, attached)
	f.running.Go(func() { f.serve(ctx) })
	return f, nil
}

// Offsets in struct bpf_sk_lookup, in bytes.
const (
	protocolAt  = 12
	localIP4At  = 40
	localPortAt = 60 // in host byte order
)

// lookup returns the BPF program: it assigns the map's socket to TCP connections to 127.0.0.0/8.
func lookup(sockets int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, protocolAt, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R2, asm.R6, localIP4At, asm.Word), // in network byte order
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.RSh.Imm(asm.R2, 24),
		asm.JNE.Imm(asm.R2, 127, "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word), // the key
		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"), // SK_PASS: if no socket was assigned, the regular lookup follows
		asm.Return(),
	}
}

func (f *Forwarder) serve(ctx context.Context) {
	slots := make(chan struct{}, maxConnections)
	for {
		from, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as EMFILE
			f.log.Warn("connections to ports of the pod wait", "error", err)
			select {
			case <-time.After(retry):
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case slots <- struct{}{}:
		default:
			f.log.Warn("a connection to a port of the pod is refused: there are too many", "most", maxConnections)
			from.Close()
			continue
		}
		f.running.Go(func() {
			defer func() { <-slots }()
			if err := f.relay(ctx, from.(*net.TCPConn)); err != nil {
				f.log.Info("a connection to a port of the pod", "error", err)
			}
		})
	}
}

// relay relays one connection. If the target cannot be dialled, the client gets a TCP reset.
func (f *Forwarder) relay(ctx context.Context, from *net.TCPConn) error {
	defer from.Close()
	port := from.LocalAddr().(*net.TCPAddr).Port // the port that the client dialled
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(f.to, uint16(port)).String())
	if err != nil {
		return errors.Join(err, from.SetLinger(0))
	}
	to := c.(*net.TCPConn)
	defer to.Close()
	defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
	var back sync.WaitGroup
	back.Go(func() { copyHalf(from, to) })
	copyHalf(to, from)
	back.Wait()
	return nil
}

// copyHalf copies one direction until EOF, then shuts down writing. On an error it closes both connections.
func copyHalf(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.ENOTCONN) {
		to.Close()
		from.Close()
	}
}

// Close closes the listener and all connections, and waits until their goroutines have ended.
func (f *Forwarder) Close() error {
	f.cancel()
	var err error
	for _, c := range f.owned {
		err = errors.Join(err, c.Close())
	}
	if f.listener != nil {
		err = errors.Join(err, f.listener.Close())
	}
	f.running.Wait()
	f.owned, f.listener = nil, nil
	return err
}
