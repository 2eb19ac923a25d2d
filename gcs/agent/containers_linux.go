package agent

import "log/slog"

// NewContainers gives a Runtime for containers in this very system, without a guest: of its methods
// those about containers and processes are of use. Roots lie below base. self is the program that is
// started as the first process of each container; its main calls [Stage] first thing. Containers end
// with this process.
func NewContainers(log *slog.Logger, base, self string) (Runtime, error) {
	return newLinuxRuntime(log, base, self, &devices{}, newSpawner(false)), nil
}
