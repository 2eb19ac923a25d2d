package hcs

import "github.com/stratavm/strata/internal/hcsapi"

// The functions, handles and results of the service.
type (
	// API has the exported functions of vmcompute.dll.
	API = hcsapi.API
	// Handle is a handle of a compute system, process or callback.
	Handle = hcsapi.Handle
	// ProcessInfo describes a process that was just created, with the requested streams.
	ProcessInfo = hcsapi.ProcessInfo
	// Notification is an asynchronous notification of the service.
	Notification = hcsapi.Notification
	// NotificationType is the type of a Notification.
	NotificationType = hcsapi.NotificationType
	// HRESULT is the result of every function of the service.
	HRESULT = hcsapi.HRESULT
)

// Results and notification types that the driver handles.
const (
	OK      = hcsapi.OK
	Pending = hcsapi.Pending

	SystemExited          = hcsapi.SystemExited
	SystemCreateCompleted = hcsapi.SystemCreateCompleted
	SystemStartCompleted  = hcsapi.SystemStartCompleted
	ProcessExited         = hcsapi.ProcessExited
	ServiceDisconnect     = hcsapi.ServiceDisconnect
)

// Native returns the Host Compute Service of this computer. It fails if vmcompute.dll is missing, that is, if neither
// the feature "Containers" nor "Hyper-V" is installed.
func Native() (API, error) { return hcsapi.Native() }
