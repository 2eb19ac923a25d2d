package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// measured: what the kubelet asks for kubectl top is there, of the pod and of each of its containers.
func (k kube) measured(t *testing.T, sandbox string) {
	t.Helper()
	type use struct {
		CPU    struct{ UsageCoreNanoSeconds struct{ Value string } }
		Memory struct{ WorkingSetBytes struct{ Value string } }
	}
	var out struct {
		Stats []struct {
			Linux struct {
				use
				Containers []struct {
					Attributes struct{ Metadata struct{ Name string } }
					use
				}
				Network struct{ DefaultInterface struct{ Name string } }
				Process struct{ ProcessCount struct{ Value string } }
			}
		}
	}
	text := k.crictl(t, 0, "statsp", "--output", "json", "--id", sandbox)
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Stats) != 1 {
		t.Fatalf("statsp: %v: %s", err, text)
	}
	none := func(u use) bool {
		cpu, memory := u.CPU.UsageCoreNanoSeconds.Value, u.Memory.WorkingSetBytes.Value
		return cpu == "" || cpu == "0" || memory == "" || memory == "0"
	}
	pod := out.Stats[0].Linux
	if n := pod.Process.ProcessCount.Value; none(pod.use) || pod.Network.DefaultInterface.Name != "eth0" ||
		n == "" || n == "0" || len(pod.Containers) != 2 {
		t.Errorf("statsp: %s", text)
	}
	for _, c := range pod.Containers {
		if none(c.use) {
			t.Errorf("statsp of container %q: %s", c.Attributes.Metadata.Name, text)
		}
	}
	if text := k.crictl(t, 0, "metricsp"); !strings.Contains(text, sandbox) {
		t.Errorf("metricsp: %s", text)
	}
}

// attaches: who attaches to a container has its input and its output, also by a terminal.
func (k kube) attaches(t *testing.T, sandbox, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	input := object{"stdin": true, "stdin_once": true}
	plain := k.start(t, sandbox, pod, "plain", "while read line; do echo got $line; echo and >&2; done", input)
	cmd := k.call(ctx, "attach", "--stdin", plain)
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	out, err := cmd.CombinedOutput()
	if text := string(out); err != nil || strings.Count(text, "and\n") != 2 || !strings.Contains(text, "got one\n") ||
		!strings.Contains(text, "got two\n") {
		t.Errorf("attach: %v: %q", err, text)
	}
	input["tty"] = true
	shell := k.start(t, sandbox, pod, "shell", "exec sh", input)
	terminal(ctx, t, k.call(ctx, "attach", "--stdin", "--tty", shell), 0)
	for id, code := range map[string]string{plain: `"exitCode": 0`, shell: `"exitCode": 3`} {
		until(t, func() error {
			text, err := k.try(0, "inspect", id)
			if !strings.Contains(text, "CONTAINER_EXITED") || !strings.Contains(text, code) {
				return fmt.Errorf("its input has ended: %s, %w", text, err)
			}
			return nil
		})
		k.crictl(t, 0, "rm", id)
	}
}
