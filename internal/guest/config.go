package guest

import "log/slog"

// Config is how the agent of a guest runs. The zero value is that of PID 1.
type Config struct {
	Logger *slog.Logger
	// PowerOff stops the machine; nil is what the kernel command line says.
	PowerOff func() error
}
