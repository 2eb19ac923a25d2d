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

// filterPriority is that of our filters, by which they are known.
const filterPriority = 0x5354

// tapName is the name of the tap beside a link.
func tapName(l netlink.Link) string { return fmt.Sprintf("strata%d", l.Attrs().Index) }

// Connect makes a tap beside a link of a namespace and has all that comes to one of them leave by the other. The tap is
// there as long as the file, or a copy of it, is open. Errors match ErrNoNamespace, ErrOwn, ErrNoLink where the link is
// not there any more, and ErrInUse where what comes to it goes elsewhere. After a failure nothing is left.
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
	// What is left of a machine that was killed.
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
	_ = h.LinkSetIP6AddrGenMode(beside, nl.IN6_ADDR_GEN_MODE_NONE) // it says nothing itself; there may be no IPv6
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

// find finds a link that is still what it was.
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

// makeTap makes a tap in a namespace. The error matches ErrInUse where there is an interface of its name: whoever has
// made it is the only one who changes what comes to the link.
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

// redirect has all that comes to one link leave by another.
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

// release takes the qdisc of Connect from a link, if there is one. The tap is ours.
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

// Disconnect takes away what Connect did to a link. The tap goes by itself, and has to be closed before. What is gone,
// or in use by another machine, is no error. The namespace may be that of this process.
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
