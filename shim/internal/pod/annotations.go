package pod

import (
	"fmt"
	"math"
	"strconv"

	"github.com/containerd/errdefs"
)

// Annotations that containerd's CRI plugin sets on the containers of a pod.
const (
	sandboxAnnotation = "io.kubernetes.cri.sandbox-id"
	typeAnnotation    = "io.kubernetes.cri.container-type"
	memoryAnnotation  = "io.kubernetes.cri.sandbox-memory" // sum of all containers in bytes; 0: no limit
	quotaAnnotation   = "io.kubernetes.cri.sandbox-cpu-quota"
	periodAnnotation  = "io.kubernetes.cri.sandbox-cpu-period"
)

// Sandbox returns the sandbox id of the container's pod, empty if it is in none, and whether the container is a member
// of the pod rather than its sandbox.
func Sandbox(annotations map[string]string) (id string, member bool) {
	return annotations[sandboxAnnotation], annotations[typeAnnotation] == "container"
}

// Annotate marks a container as the sandbox id of a pod, and sets the limits that Size returns: memory in bytes, CPU
// quota and period in microseconds; 0 is no limit.
func Annotate(annotations map[string]string, id string, memory, quota, period int64) {
	annotations[sandboxAnnotation], annotations[typeAnnotation] = id, "sandbox"
	for name, n := range map[string]int64{memoryAnnotation: memory, quotaAnnotation: quota, periodAnnotation: period} {
		annotations[name] = strconv.FormatInt(n, 10)
	}
}

// Size returns the sum of the limits of a pod's containers: memory in bytes, and processors; 0 is no limit.
func Size(annotations map[string]string) (memory int64, cpus float64, err error) {
	var numbers [3]int64
	for i, name := range []string{memoryAnnotation, quotaAnnotation, periodAnnotation} {
		text, ok := annotations[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n > math.MaxInt64>>1 {
			return 0, 0, fmt.Errorf("annotation %s: %q is not a number, or too large: %w", name, text,
				errdefs.ErrInvalidArgument)
		}
		numbers[i] = max(0, n)
	}
	if quota, period := numbers[1], numbers[2]; quota > 0 && period > 0 {
		cpus = float64(quota) / float64(period)
	}
	return numbers[0], cpus, nil
}
