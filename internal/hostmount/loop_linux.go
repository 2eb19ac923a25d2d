package hostmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const loopMajor = 7

// attachLoop returns an open loop device for an image. It is detached with its last user.
func attachLoop(ctx context.Context, im *Image) (*os.File, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if im.ReadOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	back, err := os.OpenFile(im.Path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close() // the device has it open too
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w (load the module: modprobe loop)", err)
	}
	defer ctl.Close()
	config := unix.LoopConfig{Fd: uint32(back.Fd()),
		Info: unix.LoopInfo64{Offset: uint64(im.Offset), Sizelimit: uint64(im.Size), Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], im.Path)
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := openLoop(n, mode)
		if err != nil {
			return nil, err
		}
		err = configureLoop(int(dev.Fd()), config)
		if err == nil {
			return dev, nil
		}
		closeErr := dev.Close()
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) {
			return nil, errors.Join(fmt.Errorf("set up /dev/loop%d for %s: %w", n, im.Path, err), closeErr)
		}
		// Another process took the device between the two calls: try the next one.
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

func configureLoop(fd int, config unix.LoopConfig) error {
	err := unix.IoctlLoopConfigure(fd, &config)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTTY) {
		return err
	}
	// Linux before 5.8 has no LOOP_CONFIGURE.
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_FD, int(config.Fd)); err != nil {
		return err
	}
	if err := unix.IoctlLoopSetStatus64(fd, &config.Info); err != nil {
		return errors.Join(err, unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0))
	}
	return nil
}

// openLoop opens a loop device, and creates its device node if it is missing, as in many containers.
func openLoop(n, mode int) (*os.File, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	f, err := os.OpenFile(path, mode, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil &&
		!errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return os.OpenFile(path, mode, 0)
}
