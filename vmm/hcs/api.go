package hcs

import "github.com/stratavm/strata/internal/hcsapi"

// The service's functions, its handles and what it returns.
type (
	// API is the exported functions of vmcompute.dll.
	API = hcsapi.API
	// Handle is a system, process or callback of the service.
	Handle = hcsapi.Handle
	// ProcessInfo is a process that was just created, with the streams that were asked for.
	ProcessInfo = hcsapi.ProcessInfo
	// Notification is what the service says on its own.
	Notification = hcsapi.Notification
	// NotificationType says what a notification is about.
	NotificationType = hcsapi.NotificationType
	// HRESULT is what every function of the service returns.
	HRESULT = hcsapi.HRESULT
)

// Results and notifications that the driver looks at.
const (
	OK      = hcsapi.OK
	Pending = hcsapi.Pending

	SystemExited          = hcsapi.SystemExited
	SystemCreateCompleted = hcsapi.SystemCreateCompleted
	SystemStartCompleted  = hcsapi.SystemStartCompleted
	ProcessExited         = hcsapi.ProcessExited
	ServiceDisconnect     = hcsapi.ServiceDisconnect
)

// Native is the Host Compute Service of this computer. It fails where vmcompute.dll is missing: the
// feature "Containers" or "Hyper-V" is not installed.
func Native() (API, error) { return hcsapi.Native() }
