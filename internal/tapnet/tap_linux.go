package tapnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/nsthread"
	"github.com/stratavm/strata/vmm"
)

// filterPriority is the priority by which our filters are recognised.
const filterPriority = 0x5354

// tapName returns the name of the tap of a link.
func tapName(l netlink.Link) string { return fmt.Sprintf("strata%d", l.Attrs().Index) }

// Connect creates a tap in a namespace and redirects packets between it and a link. The tap exists as long as the
// returned file, or a duplicate of it, is open. Errors match ErrNoNamespace, ErrOwn, ErrNoLink if the link does not
// exist any more, and ErrInUse if its packets are redirected already. On error everything is undone.
func Connect(path string, link vmm.Link) (tap *os.File, err error) {
	ns, h, err := enter(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	defer h.Close()
	if tap, err = connect(ns, h, link); err != nil {
		return nil, inNamespace(path, fmt.Errorf("interface %s: %w", link.Name, err))
	}
	return tap, nil
}

func connect(ns *os.File, h *netlink.Handle, want vmm.Link) (tap *os.File, err error) {
	link, err := find(h, want)
	if err != nil {
		return nil, err
	}
	if tap, err = makeTap(ns, tapName(link)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			tap.Close()
		}
	}()
	// Left by a machine that was killed.
	if err := release(h, link); err != nil {
		return nil, err
	}
	beside, err := h.LinkByName(tapName(link))
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetMTU(beside, link.Attrs().MTU); err != nil {
		return nil, fmt.Errorf("set the MTU of a tap: %w", err)
	}
	_ = h.LinkSetIP6AddrGenMode(beside, nl.IN6_ADDR_GEN_MODE_NONE) // no link-local address; fails without IPv6
	if err := h.LinkSetUp(beside); err != nil {
		return nil, fmt.Errorf("start a tap: %w", err)
	}
	if err := redirect(h, beside, link); err != nil {
		return nil, err
	}
	if err := redirect(h, link, beside); err != nil {
		return nil, errors.Join(err, release(h, link))
	}
	return tap, nil
}

// find returns a link by name and checks that it still has the hardware address of want.
func find(h *netlink.Handle, want vmm.Link) (netlink.Link, error) {
	link, err := h.LinkByName(want.Name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, ErrNoLink
	}
	if err != nil {
		return nil, err
	}
	if mac := link.Attrs().HardwareAddr.String(); mac != want.MAC {
		return nil, fmt.Errorf("%w: the one of this name has the hardware address %s, not %s", ErrNoLink, mac, want.MAC)
	}
	return link, nil
}

// makeTap creates a tap in a namespace. If the name is in use the error matches ErrInUse: the existing tap's owner
// alone may change the link's qdisc.
func makeTap(ns *os.File, name string) (tap *os.File, err error) {
	err = nsthread.Run(ns, func() (err error) {
		tap, err = openTap(name)
		return err
	})
	if err == nil {
		return tap, nil
	}
	if tap != nil {
		tap.Close()
	}
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: it is that of a virtual machine", ErrInUse)
	}
	return nil, fmt.Errorf("make a tap: %w", err)
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// redirect redirects all packets that arrive at one link to another.
func redirect(h *netlink.Handle, from, to netlink.Link) error {
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	err := h.QdiscAdd(qdisc)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: it has another ingress qdisc", ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("ingress qdisc: %w (is the kernel module sch_ingress there?)", err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0),
			Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
	if err := h.FilterAdd(filter); err != nil {
		return errors.Join(
			fmt.Errorf("filter: %w (are the kernel modules cls_u32 and act_mirred there?)", err), h.QdiscDel(qdisc))
	}
	return nil
}

// release removes Connect's qdisc from a link, if there is one. The caller must own the tap.
func release(h *netlink.Handle, link netlink.Link) error {
	qdiscs, err := h.QdiscList(link)
	if err != nil {
		return fmt.Errorf("list the qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		if q.Type() != "ingress" {
			continue
		}
		filters, err := h.FilterList(link, netlink.MakeHandle(0xffff, 0))
		if err != nil {
			return fmt.Errorf("list the filters: %w", err)
		}
		for _, f := range filters {
			if f.Attrs().Priority != filterPriority {
				return fmt.Errorf("%w: it has another ingress qdisc", ErrInUse)
			}
		}
		if err := h.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("remove the ingress qdisc: %w", err)
		}
	}
	return nil
}

// Disconnect undoes Connect for a link. The caller must have closed the tap, which removes it. It is no error if the
// link does not exist any more or another machine uses it. The namespace may be that of this process.
func Disconnect(path string, link vmm.Link) error {
	ns, err := open(path)
	if errors.Is(err, ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return inNamespace(path, err)
	}
	defer ns.Close()
	h, err := handle(ns)
	if err != nil {
		return inNamespace(path, err)
	}
	defer h.Close()
	err = disconnect(ns, h, link)
	if err == nil || errors.Is(err, ErrNoLink) || errors.Is(err, ErrInUse) {
		return nil
	}
	return inNamespace(path, fmt.Errorf("interface %s: %w", link.Name, err))
}

func disconnect(ns *os.File, h *netlink.Handle, want vmm.Link) error {
	link, err := find(h, want)
	if err != nil {
		return err
	}
	tap, err := makeTap(ns, tapName(link))
	if err != nil {
		return err
	}
	return errors.Join(release(h, link), tap.Close())
}
