package argon

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// bootKey is a volatile key: it and its value are there until the system ends.
const (
	bootKey   = `SOFTWARE\StrataBoot`
	bootValue = "ID"

	optionVolatile = 1
	lockMillis     = 10_000
)

var regCreateKeyEx = windows.NewLazySystemDLL("advapi32.dll").NewProc("RegCreateKeyExW")

// bootID is different for each boot of the system. Windows has no such identifier, and the time of the boot moves
// with the clock; so a volatile key of the registry holds one that is chosen by who asks first.
func bootID() (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("tell this boot from others: %w", err) }
	key, err := volatileKey(bootKey)
	if err != nil {
		return fail(err)
	}
	defer key.Close()
	lock, err := windows.UTF16PtrFromString(`Global\StrataBoot`)
	if err != nil {
		return fail(err)
	}
	mutex, err := windows.CreateMutex(nil, false, lock)
	if err != nil && !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return fail(err)
	}
	defer windows.CloseHandle(mutex)
	switch got, err := windows.WaitForSingleObject(mutex, lockMillis); {
	case err != nil:
		return fail(err)
	case got == uint32(windows.WAIT_TIMEOUT):
		return fail(errors.New(`another process holds the mutex Global\StrataBoot`))
	}
	defer windows.ReleaseMutex(mutex)
	id, _, err := key.GetStringValue(bootValue)
	if err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fail(err)
	}
	id = uuid.NewString()
	if err := key.SetStringValue(bootValue, id); err != nil {
		return fail(err)
	}
	return id, nil
}

// volatileKey opens or creates a key below HKEY_LOCAL_MACHINE that does not outlive the system's run. Package
// registry creates keys that do.
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
