package hcs

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/pkg/guid"
	"golang.org/x/sys/windows"
)

// Build returns the build number of this Windows.
func Build() uint32 { return windows.RtlGetVersion().BuildNumber }

// Listen listens on a Hyper-V socket service for connections from one VM. If this Windows has no Hyper-V sockets, the
// error matches errors.ErrUnsupported.
func Listen(runtimeID, serviceID string) (net.Listener, error) {
	vm, err := guid.FromString(runtimeID)
	if err != nil {
		return nil, fmt.Errorf("runtime id %q of the VM: %w", runtimeID, err)
	}
	service, err := guid.FromString(serviceID)
	if err != nil {
		return nil, fmt.Errorf("Hyper-V socket service %q: %w", serviceID, err)
	}
	l, err := winio.ListenHvsock(&winio.HvsockAddr{VMID: vm, ServiceID: service})
	if errors.Is(err, windows.WSAEAFNOSUPPORT) {
		return nil, fmt.Errorf("Hyper-V sockets: %w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// FileID returns an error if a file or folder has no file identity.
func FileID(path string) error {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return fmt.Errorf("identity of %s: %w", path, err)
	}
	h, err := windows.CreateFile(p, 0, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return fmt.Errorf("identity of %s: %w", path, err)
	}
	defer windows.CloseHandle(h)
	var info struct {
		VolumeSerialNumber uint64
		FileID             [16]byte
	}
	err = windows.GetFileInformationByHandleEx(h, windows.FileIdInfo,
		(*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		return fmt.Errorf("identity of %s: %w", path, err)
	}
	return nil
}
