package hcsapi

// HRESULT is what every function of the platform returns.
type HRESULT uint32

// Results that callers look at themselves.
const (
	OK      HRESULT = 0
	Pending HRESULT = 0xC0370103 // the call completes with a notification
)

// Win32 wraps a Win32 error number the way the platform's functions do.
func Win32(code uint16) HRESULT { return 0x80070000 | HRESULT(code) }

// Failed reports whether h is an error; Pending counts as one.
func (h HRESULT) Failed() bool { return h&0x80000000 != 0 }

// Code is h with a wrapped Win32 error reduced to that error's number: 0x80070005 gives 5. Other results stay whole.
func (h HRESULT) Code() uint32 {
	if uint32(h)&0x1FFF0000 == 0x00070000 {
		return uint32(h) & 0xFFFF
	}
	return uint32(h)
}
