package test

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// TestPodRefused: a pod that is to have namespaces of the host, or a VM that cannot be, is an error which says what to
// leave out, and nothing is left of it.
func TestPodRefused(t *testing.T) {
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { testPodRefused(t, needKube(t, handler)) })
	}
}

func testPodRefused(t *testing.T, k kube) {
	for i, tt := range []struct {
		want  string
		linux object
		more  object
	}{
		{"leave out hostNetwork", object{"security_context": object{"namespace_options": object{"network": 2}}}, nil},
		{"leave out hostPID", object{"security_context": object{"namespace_options": object{"pid": 2}}}, nil},
		{"leave out hostIPC", object{"security_context": object{"namespace_options": object{"ipc": 2}}}, nil},
		{"is not known: there are io.stratavm.cpus and io.stratavm.memory", object{}, object{"io.stratavm.memroy": "1024"}},
		{"give a number from 1", object{}, object{"io.stratavm.memory": "0"}},
	} {
		pod := k.document(t, "refused", object{"metadata": object{"name": fmt.Sprint("p", i), "namespace": "default",
			"uid": fmt.Sprint("u", i), "attempt": 1}, "log_directory": k.dir, "linux": tt.linux, "annotations": tt.more})
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		out, err := k.call(ctx, "runp", "--runtime", k.handler, pod).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%v, want an error with %q: %s", err, tt.want, out)
		}
	}
	k.clean(t)
	released(t, k.addresses())
}
