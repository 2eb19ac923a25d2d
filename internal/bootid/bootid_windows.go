package bootid

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// bootKey is a volatile key, which with its value exists until shutdown.
const (
	bootKey   = `SOFTWARE\StrataBoot`
	bootValue = "ID"

	optionVolatile = 1
	lockMillis     = 10_000
)

var regCreateKeyEx = windows.NewLazySystemDLL("advapi32.dll").NewProc("RegCreateKeyExW")

// read reads the identifier from a volatile registry key. The first caller after a boot creates it at random: Windows
// has no boot id, and the boot time changes with the clock.
func read() (string, error) {
	key, err := volatileKey(bootKey)
	if err != nil {
		return "", err
	}
	defer key.Close()
	lock, err := windows.UTF16PtrFromString(`Global\StrataBoot`)
	if err != nil {
		return "", err
	}
	mutex, err := windows.CreateMutex(nil, false, lock)
	if err != nil && !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return "", err
	}
	defer windows.CloseHandle(mutex)
	runtime.LockOSThread() // a Windows mutex is owned by a thread
	defer runtime.UnlockOSThread()
	switch got, err := windows.WaitForSingleObject(mutex, lockMillis); {
	case err != nil:
		return "", err
	case got == uint32(windows.WAIT_TIMEOUT):
		return "", errors.New(`another process holds the mutex Global\StrataBoot`)
	}
	defer windows.ReleaseMutex(mutex)
	id, _, err := key.GetStringValue(bootValue)
	if err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		return "", err
	}
	id = uuid.NewString()
	if err := key.SetStringValue(bootValue, id); err != nil {
		return "", err
	}
	return id, nil
}

// volatileKey opens or creates a volatile key below HKEY_LOCAL_MACHINE. Package registry only creates persistent keys.
func volatileKey(path string) (registry.Key, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	var key syscall.Handle
	var made uint32
	code, _, _ := regCreateKeyEx.Call(uintptr(registry.LOCAL_MACHINE), uintptr(unsafe.Pointer(name)), 0, 0, optionVolatile,
		registry.QUERY_VALUE|registry.SET_VALUE, 0, uintptr(unsafe.Pointer(&key)), uintptr(unsafe.Pointer(&made)))
	if code != 0 {
		return 0, fmt.Errorf(`registry key HKLM\%s: %w`, path, syscall.Errno(code))
	}
	return registry.Key(key), nil
}
