package hcsschema

// ProcessParameters starts a process with HcsCreateProcess or over the guest protocol. Linux guests
// take CommandArgs, Windows guests CommandLine.
type ProcessParameters struct {
	CommandLine      string            `json:",omitempty"`
	CommandArgs      []string          `json:",omitempty"`
	User             string            `json:",omitempty"`
	WorkingDirectory string            `json:",omitempty"`
	Environment      map[string]string `json:",omitempty"`
	EmulateConsole   bool              `json:",omitempty"`
	CreateStdInPipe  bool              `json:",omitempty"`
	CreateStdOutPipe bool              `json:",omitempty"`
	CreateStdErrPipe bool              `json:",omitempty"`
	ConsoleSize      []int32           `json:",omitempty"` // height, width
	// CreateInUtilityVm runs the process in the VM itself.
	CreateInUtilityVm bool `json:",omitempty"`
}

// ProcessModifyRequest changes a running process with HcsModifyProcess.
type ProcessModifyRequest struct {
	Operation   string                `json:",omitempty"` // see the constants
	ConsoleSize *ConsoleSize          `json:",omitempty"`
	CloseHandle *ProcessHandleToClose `json:",omitempty"`
}

// Operations of a ProcessModifyRequest.
const (
	ModifyConsoleSize = "ConsoleSize"
	ModifyCloseHandle = "CloseHandle"
)

// ConsoleSize is in characters.
type ConsoleSize struct {
	Height uint16 `json:",omitempty"`
	Width  uint16 `json:",omitempty"`
}

// ProcessHandleToClose names the stream whose end the process is to see.
type ProcessHandleToClose struct {
	Handle string `json:",omitempty"` // "StdIn"
}

// ProcessStatus is the answer of HcsGetProcessProperties.
type ProcessStatus struct {
	ProcessId      uint32 `json:",omitempty"`
	Exited         bool   `json:",omitempty"`
	ExitCode       uint32 `json:",omitempty"`
	LastWaitResult int32  `json:",omitempty"`
}

// SignalLinux and SignalWindows are the options of HcsSignalProcess.
type (
	SignalLinux struct {
		Signal int `json:",omitempty"`
	}
	SignalWindows struct {
		Signal string `json:",omitempty"` // CtrlC, CtrlBreak, CtrlClose, CtrlLogOff, CtrlShutdown
	}
)
