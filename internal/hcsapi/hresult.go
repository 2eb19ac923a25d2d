package hcsapi

// HRESULT is the result code of every function of the platform.
type HRESULT uint32

// Results that callers handle.
const (
	OK      HRESULT = 0
	Pending HRESULT = 0xC0370103 // the call completes with a notification
)

// Win32 returns a Win32 error code as an HRESULT, like HRESULT_FROM_WIN32.
func Win32(code uint16) HRESULT { return 0x80070000 | HRESULT(code) }

// Failed reports whether h is an error; Pending counts as one.
func (h HRESULT) Failed() bool { return h&0x80000000 != 0 }

// Code returns the Win32 error code that h wraps, such as 5 for 0x80070005, or else h itself.
func (h HRESULT) Code() uint32 {
	if uint32(h)&0x1FFF0000 == 0x00070000 {
		return uint32(h) & 0xFFFF
	}
	return uint32(h)
}
