package pod

import (
	"fmt"
	"math"
	"strconv"

	"github.com/containerd/errdefs"
)

// Annotations by which CRI says of which pod a container is.
const (
	sandboxAnnotation = "io.kubernetes.cri.sandbox-id"
	typeAnnotation    = "io.kubernetes.cri.container-type"
	memoryAnnotation  = "io.kubernetes.cri.sandbox-memory" // bytes of all containers; 0: no limit
	quotaAnnotation   = "io.kubernetes.cri.sandbox-cpu-quota"
	periodAnnotation  = "io.kubernetes.cri.sandbox-cpu-period"
)

// Sandbox returns the id of the container with which the pod of a container began, and whether it is another one than
// this; an empty id where it is in no pod. The arguments are those of the container's document.
func Sandbox(annotations map[string]string) (id string, member bool) {
	return annotations[sandboxAnnotation], annotations[typeAnnotation] == "container"
}

// Annotate puts into annotations what says that a container is the first one of a pod, and what all of them may have
// together, as CRI does: see Size.
func Annotate(annotations map[string]string, id string, memory, quota, period int64) {
	annotations[sandboxAnnotation], annotations[typeAnnotation] = id, "sandbox"
	for name, n := range map[string]int64{memoryAnnotation: memory, quotaAnnotation: quota, periodAnnotation: period} {
		annotations[name] = strconv.FormatInt(n, 10)
	}
}

// Size returns what the containers of a pod may have together: memory in bytes, and processors. 0: nothing is said.
func Size(annotations map[string]string) (memory int64, cpus float64, err error) {
	var numbers [3]int64
	for i, name := range []string{memoryAnnotation, quotaAnnotation, periodAnnotation} {
		text, ok := annotations[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n > math.MaxInt64>>1 {
			return 0, 0, fmt.Errorf("annotation %s: %q is no number of this kind: %w", name, text, errdefs.ErrInvalidArgument)
		}
		numbers[i] = max(0, n)
	}
	if quota, period := numbers[1], numbers[2]; quota > 0 && period > 0 {
		cpus = float64(quota) / float64(period)
	}
	return numbers[0], cpus, nil
}
