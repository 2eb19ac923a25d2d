package hcsapi

import (
	"fmt"
	"io"
)

// Handle is a system, process or callback of the service.
type Handle uintptr

// API is the exported functions of vmcompute.dll. Results are JSON documents and may be empty.
// Implementations may be called concurrently.
type API interface {
	CreateComputeSystem(id, configuration string) (system Handle, result string, hr HRESULT)
	OpenComputeSystem(id string) (system Handle, result string, hr HRESULT)
	CloseComputeSystem(system Handle) HRESULT
	StartComputeSystem(system Handle, options string) (result string, hr HRESULT)
	ShutdownComputeSystem(system Handle, options string) (result string, hr HRESULT)
	TerminateComputeSystem(system Handle, options string) (result string, hr HRESULT)
	GetComputeSystemProperties(system Handle, query string) (properties, result string, hr HRESULT)
	ModifyComputeSystem(system Handle, configuration string) (result string, hr HRESULT)
	EnumerateComputeSystems(query string) (systems, result string, hr HRESULT)
	GetServiceProperties(query string) (properties, result string, hr HRESULT)
	// RegisterComputeSystemCallback makes the service call notify for every notification of the system, on any thread,
	// until the callback is unregistered. notify must not block.
	RegisterComputeSystemCallback(system Handle, notify func(Notification)) (callback Handle, hr HRESULT)
	UnregisterComputeSystemCallback(callback Handle) HRESULT

	CreateProcess(system Handle, parameters string) (info ProcessInfo, result string, hr HRESULT)
	SignalProcess(process Handle, options string) (result string, hr HRESULT)
	TerminateProcess(process Handle) (result string, hr HRESULT)
	ModifyProcess(process Handle, settings string) (result string, hr HRESULT)
	GetProcessProperties(process Handle) (properties, result string, hr HRESULT)
	CloseProcess(process Handle) HRESULT
	RegisterProcessCallback(process Handle, notify func(Notification)) (callback Handle, hr HRESULT)
	UnregisterProcessCallback(callback Handle) HRESULT
}

// ProcessInfo is a process that was created, with the streams that were requested. The caller must close them.
type ProcessInfo struct {
	Process        Handle
	ID             uint32
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// NotificationType is the type of a notification.
type NotificationType uint32

// The notifications there are.
const (
	SystemExited          NotificationType = 1
	SystemCreateCompleted NotificationType = 2
	SystemStartCompleted  NotificationType = 3
	SystemCrashInitiated  NotificationType = 0xD
	SystemCrashReport     NotificationType = 6
	GuestConnectionClosed NotificationType = 0xE
	ProcessExited         NotificationType = 0x10000
	ServiceDisconnect     NotificationType = 0x01000000
)

var notificationNames = map[NotificationType]string{
	SystemExited: "SystemExited", SystemCreateCompleted: "SystemCreateCompleted",
	SystemStartCompleted: "SystemStartCompleted", SystemCrashInitiated: "SystemCrashInitiated",
	SystemCrashReport: "SystemCrashReport", GuestConnectionClosed: "GuestConnectionClosed",
	ProcessExited: "ProcessExited", ServiceDisconnect: "ServiceDisconnect",
}

func (t NotificationType) String() string {
	if s, ok := notificationNames[t]; ok {
		return s
	}
	return fmt.Sprintf("NotificationType(%#x)", uint32(t))
}

// Notification is a notification of the service.
type Notification struct {
	Type   NotificationType
	Status HRESULT
	Data   string
}
