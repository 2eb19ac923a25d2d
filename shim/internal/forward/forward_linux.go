// Package forward leads connections to loopback addresses of a network namespace to another address. Whoever forwards
// a port of a pod (kubectl port-forward) connects to such an address in the pod's namespace of the host, where no
// program of a pod is that has a VM.
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

// Bounds of a Forwarder: of connections at a time, of the time in which one is made, and how long none is taken after one
// that could not be.
const (
	maxConnections = 256
	dialTimeout    = 10 * time.Second
	retry          = time.Second
)

// Forwarder leads TCP connections until it is closed.
type Forwarder struct {
	to       netip.Addr
	log      *slog.Logger
	listener net.Listener
	owned    []io.Closer // besides
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// New leads connections to ports of 127.0.0.0/8 in the network namespace of a file to the same ports of an address, which
// is dialled from the caller's namespace. It needs Linux 5.9 and CAP_BPF, CAP_NET_ADMIN. Nothing of it outlives the
// process.
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
		l.SetMultipathTCP(false) // such a socket cannot be in a map
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
	var slot uint32 // of the listener, which is a descriptor here
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

// What the kernel asks a program of this kind about, in bytes from the beginning: struct bpf_sk_lookup.
const (
	protocolAt  = 12
	localIP4At  = 40
	localPortAt = 60 // in the order of this machine
)

// lookup is the program: it gives connections to 127.0.0.0/8 the socket of a map.
func lookup(sockets int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, protocolAt, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R2, asm.R6, localIP4At, asm.Word), // in the order of the network
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
		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"), // SK_PASS: without a socket as if there were no program
		asm.Return(),
	}
}

func (f *Forwarder) serve(ctx context.Context) {
	room := make(chan struct{}, maxConnections)
	for {
		from, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as that there are too many descriptors: others wait until there are less
			f.log.Warn("connections to ports of the pod wait", "error", err)
			select {
			case <-time.After(retry):
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case room <- struct{}{}:
		default:
			f.log.Warn("a connection to a port of the pod is refused: there are too many", "most", maxConnections)
			from.Close()
			continue
		}
		f.running.Go(func() {
			defer func() { <-room }()
			if err := f.lead(ctx, from.(*net.TCPConn)); err != nil {
				f.log.Info("a connection to a port of the pod", "error", err)
			}
		})
	}
}

// lead leads one connection. Where nobody answers, whoever has connected is told by a reset.
func (f *Forwarder) lead(ctx context.Context, from *net.TCPConn) error {
	defer from.Close()
	port := from.LocalAddr().(*net.TCPAddr).Port // which was dialled
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(f.to, uint16(port)).String())
	if err != nil {
		return errors.Join(err, from.SetLinger(0))
	}
	to := c.(*net.TCPConn)
	defer to.Close()
	defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
	var back sync.WaitGroup
	back.Go(func() { pass(from, to) })
	pass(to, from)
	back.Wait()
	return nil
}

// pass copies until there is no more, and says so to the other side.
func pass(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.ENOTCONN) { // the other direction is of no use either
		to.Close()
		from.Close()
	}
}

// Close ends all connections and waits for that.
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
