package hcsapi

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The Win32 errors that are made here.
const (
	invalidParameter = 0x57
	procNotFound     = 0x7F
)

// Call calls a function of a library. One that is missing, or whose library is, returns what the loader says of
// functions. Pointers among args have to be converted in the call itself: the directive then keeps what they
// point to where it is until the function has returned.
//
//go:uintptrescapes
func Call(dll *windows.LazyDLL, name string, args ...uintptr) HRESULT {
	proc := dll.NewProc(name)
	if proc.Find() != nil {
		return Win32(procNotFound)
	}
	r, _, _ := syscall.SyscallN(proc.Addr(), args...)
	return HRESULT(uint32(r))
}

// Text is an argument: NUL-terminated UTF-16. A text with a NUL inside is an error.
func Text(s string) (*uint16, HRESULT) {
	p, err := windows.UTF16PtrFromString(s)
	if err != nil {
		return nil, Win32(invalidParameter)
	}
	return p, OK
}

// Taken returns a text that the platform has allocated, and frees it.
func Taken(p *uint16) string {
	if p == nil {
		return ""
	}
	defer windows.CoTaskMemFree(unsafe.Pointer(p))
	return windows.UTF16PtrToString(p)
}
