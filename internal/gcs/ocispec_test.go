package gcs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// TestWholeDocument: our guest gets the caller's document as it is, but for the root and what the process is.
func TestWholeDocument(t *testing.T) {
	limit, umask := int64(64<<20), uint32(0o77)
	given := &specs.Spec{
		Version: "1.0.2", Hostname: "given", Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"old"}, Env: []string{"OLD=1"}, Cwd: "/old", NoNewPrivileges: true,
			User:         specs.User{UID: 1, GID: 2, Umask: &umask, AdditionalGids: []uint32{5}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}},
		Mounts: []specs.Mount{{Destination: "/run", Type: "tmpfs"}},
		Linux:  &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}},
	}
	before := *given.Process
	c := &Client{}
	c.caps.GuestDefinedCapabilities.StrataAgent = 1
	spec := &vmm.ProcessSpec{ContainerID: "c1", Root: "/run/c1/rootfs", Args: []string{"new"}, Env: []string{"NEW=1"},
		Dir: "/new", User: "app", Terminal: true, Width: 80, Height: 24, Spec: given}
	got, process, err := c.documents(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := *given
	want.Root = &specs.Root{Path: "/run/c1/rootfs", Readonly: true}
	want.Process = &specs.Process{Args: []string{"new"}, Env: []string{"NEW=1"}, Cwd: "/new", NoNewPrivileges: true,
		Terminal: true, ConsoleSize: &specs.Box{Width: 80, Height: 24}, Capabilities: given.Process.Capabilities,
		User: specs.User{Username: "app", Umask: &umask, AdditionalGids: []uint32{5}}}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	if process.Args[0] != "new" || process.Capabilities != nil {
		t.Errorf("the process itself: %+v", process)
	}
	if d := cmp.Diff(&before, given.Process); d != "" {
		t.Errorf("the caller's document was changed: %s", d)
	}
}
