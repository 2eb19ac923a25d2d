//go:build linux

package mounts

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/gcsserver/servertest"
)

// document is a container document with a process, as Microsoft's host sends it.
func document(root string, args ...string) gcs.ContainerConfig {
	return gcs.ContainerConfig{SchemaVersion: gcs.Version{Major: 2, Minor: 1}, OciSpecification: &specs.Spec{
		Root: &specs.Root{Path: root}, Process: &specs.Process{Args: args, Cwd: "/made", Env: []string{"A=b"},
			User: specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}}},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs"},
			{Destination: "/run", Type: "tmpfs", Options: []string{"nosuid", "noexec", "mode=750", "size=65536k", "whatever"}},
			{Destination: "/a/b", Type: "tmpfs"}},
	}}
}

// TestFirstProcess: a container begins with the process of its document, and ends with it.
func TestFirstProcess(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script string
		stop   int // a signal to all
		delete bool
		want   string
	}{
		{"ends by itself",
			"id -u; id -G; pwd; echo $A; stat -c %a /run; grep -c ' / /run\\|/a/b ' /proc/self/mountinfo; sleep 1000 & exit 3",
			0, false, gcs.ExitUnexpected},
		{"asked to end", "trap 'exit 3' TERM; while true; do sleep 0.05; done", 15, false, gcs.ExitGraceful},
		{"killed", "sleep 1000", 9, false, gcs.ExitForced},
		{"deleted", "sleep 1000", 0, true, gcs.ExitForced},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := testRuntime(t)
			root := r.testContainer(t, "other")
			r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
			root = r.base + "/gcs/c/first/rootfs"
			r.must(t, "Add", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root,
				Layers: []hcsschema.Layer{{Path: r.base + "/layers/other"}}, ScratchPath: r.base + "/scratch/first"})
			if err := r.Create(t.Context(), "first", document(root, "/bin/busybox", "sh", "-c", tc.script)); err != nil {
				t.Fatal(err)
			}
			type end struct {
				how string
				err error
			}
			ended := make(chan end, 1)
			go func() {
				how, err := r.Ended(t.Context(), "first")
				ended <- end{how, err}
			}()
			start := gcsserver.Process{Container: "first", First: true}
			if tc.stop == 0 && !tc.delete {
				out, code := r.output(t, start, "")
				if want := "7\n8 9\n/made\nb\n750\n2\n"; out != want || code != 3 {
					t.Errorf("got %q, code %d; want %q", out, code, want)
				}
			} else {
				if _, err := r.Exec(t.Context(), start); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Exec(t.Context(), start); !errors.Is(err, gcsserver.ErrState) {
					t.Errorf("started twice: %v", err)
				}
			}
			if tc.stop == 15 { // the trap has to be set
				time.Sleep(200 * time.Millisecond)
			}
			if tc.stop != 0 {
				if err := r.Stop(t.Context(), "first", tc.stop); err != nil {
					t.Fatal(err)
				}
			}
			if tc.delete {
				if err := r.Delete(t.Context(), "first"); err != nil {
					t.Fatal(err)
				}
			}
			if e := <-ended; e.how != tc.want || e.err != nil {
				t.Errorf("ended by %q, %v; want %q", e.how, e.err, tc.want)
			}
			if tc.delete {
				return
			}
			if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "first", Args: []string{"/bin/busybox",
				"true"}}); !errors.Is(err, gcsserver.ErrStopped) {
				t.Errorf("a program starts in a container that has ended: %v", err)
			}
			// Nothing of it runs any more.
			r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
		})
	}
}

// TestNeverBegun: a container that is deleted before its first process was started does not end.
func TestNeverBegun(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "c1") // without a process in its document
	_ = root
	if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", First: true}); !errors.Is(err,
		gcsserver.ErrInvalid) {
		t.Errorf("a document without a process: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.Ended(context.Background(), "c1")
		ended <- err
	}()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) { // until it has looked the container up
		select {
		case err := <-ended:
			t.Fatalf("ended: %v", err)
		case <-time.After(50 * time.Millisecond):
			waiting = true
		}
	}
	if err := r.Delete(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, gcsserver.ErrNoContainer) {
		t.Errorf("ended: %v", err)
	}
}

// serve has an agent on a connection, whose host end it returns, after the handshake.
func serve(t *testing.T, r *testGuest) *servertest.RawHost {
	t.Helper()
	host, guest := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = gcsserver.Serve(t.Context(), guest, nil, r, r.log)
	}()
	t.Cleanup(func() { host.Close(); <-served })
	b := servertest.New(t, host)
	b.Ask(gcs.TypeNegotiateProtocol, &gcs.NegotiateRequest{MinimumVersion: 4, MaximumVersion: 4})
	return b
}

// TestExitNotification: the host that created a container hears of its end, once, after the answers that
// came before, and a program is started by a request that does not name one.
func TestExitNotification(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "other")
	r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
	root = r.base + "/gcs/c/first/rootfs"
	r.must(t, "Add", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root,
		Layers: []hcsschema.Layer{{Path: r.base + "/layers/other"}}, ScratchPath: r.base + "/scratch/first"})
	b := serve(t, r)
	base := gcs.RequestBase{ContainerId: "first", ActivityId: "12345678-1234-1234-1234-123456789abc"}
	config, err := gcs.EncodeText(document(root, "/bin/busybox", "true"))
	if err != nil {
		t.Fatal(err)
	}
	b.Ask(gcs.TypeCreate, &gcs.CreateRequest{RequestBase: base, ContainerConfig: config})
	b.Ask(gcs.TypeStart, &gcs.EmptyRequest{RequestBase: base})
	exec := &gcs.ExecuteRequest{RequestBase: base, Settings: gcs.ExecuteSettings{ProcessParameters: "{}"}}
	if resp := b.Ask(gcs.TypeExecuteProcess, exec); resp.Result != gcs.ResultOK {
		t.Fatalf("%+v", resp)
	}
	n := b.Notification()
	if n.ContainerId != "first" || n.Type != gcs.ExitUnexpected || n.Operation != "None" || n.Result != 0 ||
		n.ActivityId != base.ActivityId {
		t.Errorf("notification %+v", n)
	}
	if resp := b.Ask(gcs.TypeExecuteProcess, exec); resp.Result != gcs.ResultContainerStopped {
		t.Errorf("started again: %+v", resp)
	}
	if resp := b.Ask(gcs.TypeDeleteContainerState, &gcs.EmptyRequest{RequestBase: base}); resp.Result != gcs.ResultOK {
		t.Errorf("deleted: %+v", resp)
	}
	if len(b.Notifications) != 0 {
		t.Errorf("more notifications: %+v", b.Notifications)
	}
}

// TestNotServed: what Microsoft's host may ask for and this agent does not have is answered as not
// supported, by its name.
func TestNotServed(t *testing.T) {
	r := testRuntime(t)
	r.testContainer(t, "c1")
	b := serve(t, r)
	vm, c1 := gcs.RequestBase{ContainerId: gcs.NullContainer}, gcs.RequestBase{ContainerId: "c1"}
	change := func(base gcs.RequestBase, kind hcsschema.ResourceType) any {
		return &gcs.ModifyRequest{RequestBase: base,
			Request: gcsserver.Modification{RequestType: "Add", ResourceType: kind, Settings: []byte("{}")}}
	}
	for _, tc := range []struct {
		name string
		typ  gcs.MessageType
		req  any
		want gcs.HRESULT
	}{
		{"Statistics", gcs.TypeGetProperties, &gcs.PropertiesRequest{RequestBase: c1,
			Query: `{"PropertyTypes":["Statistics"]}`}, gcs.ResultNotSupported},
		{"ContainerConstraints", gcs.TypeModifySettings, change(c1, "ContainerConstraints"), gcs.ResultNotSupported},
		{"Network", gcs.TypeModifySettings, change(vm, "Network"), gcs.ResultNotSupported},
		{"NetworkNamespace", gcs.TypeModifySettings, change(vm, "NetworkNamespace"), gcs.ResultNotSupported},
		{"UpdateContainer", gcs.TypeUpdateContainer, &gcs.EmptyRequest{RequestBase: c1}, gcs.ResultNotImplemented},
		{"LifecycleNotification", gcs.TypeLifecycleNotification, &gcs.EmptyRequest{RequestBase: vm},
			gcs.ResultNotImplemented},
	} {
		resp := b.Ask(tc.typ, tc.req)
		if resp.Result != tc.want || !strings.Contains(resp.ErrorMessage, tc.name) || !strings.Contains(resp.ErrorMessage,
			"not") {
			t.Errorf("%s: %v %q", tc.name, resp.Result, resp.ErrorMessage)
		}
	}
}
