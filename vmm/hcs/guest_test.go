package hcs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// asStarted is a process that tells what it was started with, then reads its input to the end.
func asStarted(p hcstest.ProcessParameters, in io.Reader, out, _ io.Writer) uint32 {
	var hosted struct{ OciSpecification specs.Spec }
	if json.Unmarshal(p.Hosted, &hosted) != nil {
		return 1
	}
	process, by := hosted.OciSpecification.Process, "first"
	if p.OciProcess != nil {
		by, process = "later", new(specs.Process)
		if json.Unmarshal(p.OciProcess, process) != nil {
			return 2
		}
	}
	effective := 0
	if process.Capabilities != nil {
		effective = len(process.Capabilities.Effective)
	}
	user := process.User
	fmt.Fprintf(out, "%s %s %d:%d %q %t", by, process.Args, user.UID, user.GID, user.Username, effective > 0)
	io.Copy(io.Discard, in)
	return 7
}

// foreignGuest is a VM whose Linux guest is Microsoft's, over an external connection, in which two containers
// are mounted that share the scratch of the first.
type foreignGuest struct {
	*rig
	m *hcs.Machine
}

func newForeignGuest(t *testing.T) *foreignGuest {
	g := &foreignGuest{rig: newRig(t, hcstest.Options{Exec: asStarted})}
	g.m = g.start(g.lcow(true))
	mountWebAndDB(t, g.m)
	return g
}

// mountWebAndDB mounts two containers on one scratch, and returns the changes in their order.
func mountWebAndDB(t *testing.T, m *hcs.Machine) []vmm.Change {
	scratch := disk(1)
	scratch.Mount = vmm.MappedDisk{LUN: 1, MountPath: "/run/gcs/c/web"}
	changes := []vmm.Change{disk(0), scratch}
	for _, id := range []string{"web", "db"} {
		changes = append(changes, vmm.Change{Op: vmm.Add, Mount: vmm.CombinedLayers{ContainerID: id,
			RootPath: "/run/gcs/c/" + id + "/rootfs",
			Layers:   []vmm.GuestLayer{{Path: "/m/a"}}, ScratchPath: "/run/gcs/c/web/scratch/" + id}})
	}
	for _, c := range changes {
		apply(t, m, c)
	}
	return changes
}

// What the guest binds over the folder of a container that shares another's scratch goes with the root: else it
// keeps the disk in use when the host takes it.
func TestSharedScratchOfForeignGuest(t *testing.T) {
	for _, external := range []bool{true, false} {
		r := newRig(t, hcstest.Options{Exec: asStarted})
		m := r.start(r.lcow(external))
		changes := mountWebAndDB(t, m)
		stdin, input := io.Pipe()
		p, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"x"}, ContainerID: "db",
			Root: "/run/gcs/c/db/rootfs", Stdin: stdin})
		if err != nil {
			t.Fatal(err)
		}
		input.Close()
		if code, err := p.Wait(t.Context()); code != 7 || err != nil {
			t.Errorf("code %d, %v", code, err)
		}
		if err := errors.Join(p.Close(), m.DeleteContainerState(t.Context(), "db")); err != nil {
			t.Error(err)
		}
		for _, c := range slices.Backward(changes) {
			c.Op = vmm.Remove
			if err := m.Apply(t.Context(), c); err != nil {
				t.Errorf("external connection %t: %v", external, err)
			}
		}
		if lost := r.s.Lost(); len(lost) > 0 {
			t.Errorf("the guest has removed %q", lost)
		}
	}
}

// running is a process that runs until its input ends.
type running struct {
	vmm.Process
	t     *testing.T
	out   bytes.Buffer
	input *io.PipeWriter
}

func (g *foreignGuest) exec(spec vmm.ProcessSpec) (*running, error) {
	stdin, input := io.Pipe()
	r := &running{t: g.t, input: input}
	spec.Args, spec.Stdin, spec.Stdout = []string{"x"}, stdin, &r.out
	if spec.ContainerID != "" && spec.Root == "" {
		spec.Root = "/run/gcs/c/" + spec.ContainerID + "/rootfs"
	}
	p, err := g.m.Exec(g.t.Context(), spec)
	if err != nil {
		input.Close()
		return nil, err
	}
	r.Process = p
	g.t.Cleanup(func() { input.Close() })
	return r, nil
}

func (g *foreignGuest) mustExec(spec vmm.ProcessSpec) *running {
	g.t.Helper()
	p, err := g.exec(spec)
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// end lets the process end and checks what it said.
func (r *running) end(want string) {
	r.t.Helper()
	r.input.Close()
	if code, err := r.Wait(r.t.Context()); err != nil || code != 7 || !strings.HasPrefix(r.out.String(), want) {
		r.t.Errorf("code %d, %v, %q instead of %q", code, err, r.out.String(), want)
	}
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
}

func (g *foreignGuest) nothingIsLost(containers ...string) {
	g.t.Helper()
	if lost := g.s.Lost(); len(lost) > 0 {
		g.t.Errorf("the guest has removed %q", lost)
	}
	if got := g.s.Containers(); !slices.Equal(got, containers) {
		g.t.Errorf("containers %q instead of %q", got, containers)
	}
}

// Containers side by side, ended by deletion, by their first process, and begun anew: neither's files are touched.
func TestContainersOfForeignGuest(t *testing.T) {
	g := newForeignGuest(t)
	web, db := vmm.ProcessSpec{ContainerID: "web"}, vmm.ProcessSpec{ContainerID: "db"}
	first, second, other := g.mustExec(web), g.mustExec(web), g.mustExec(db)
	second.end("later")
	first.end("first")
	g.nothingIsLost("db+run", "web+run")
	again := g.mustExec(web) // the container has stopped with its first process
	g.nothingIsLost("db+run", "web+run")
	if err := g.m.DeleteContainerState(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if code, err := again.Wait(t.Context()); code != 137 || err != nil {
		t.Errorf("a process in a container that is deleted: code %d, %v", code, err)
	}
	g.nothingIsLost("db+run")
	for range 2 { // what is not known is gone
		if err := g.m.DeleteContainerState(t.Context(), "web"); err != nil {
			t.Error(err)
		}
	}
	g.mustExec(web).end("first")
	other.end("first")
	for _, id := range []string{"web", "db"} {
		if err := g.m.DeleteContainerState(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	g.nothingIsLost()
}

// A container that cannot be created, or whose first process cannot be started, takes nothing along and can
// be created later.
func TestContainerOfForeignGuestFails(t *testing.T) {
	web := vmm.ProcessSpec{ContainerID: "web"}
	for name, tt := range map[string]struct {
		fn   string
		spec vmm.ProcessSpec
	}{
		"no root":            {"", vmm.ProcessSpec{ContainerID: "web", Root: "/run/gcs/c/none/rootfs"}},
		"create":             {"(guest) Create", web},
		"first process":      {"(guest) ExecuteProcess", web},
		"user by name":       {"", vmm.ProcessSpec{ContainerID: "web", User: "www"}},
		"user and group":     {"", vmm.ProcessSpec{ContainerID: "web", User: "7:www"}},
		"user out of bounds": {"", vmm.ProcessSpec{ContainerID: "web", User: "4294967296"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newForeignGuest(t)
			g.s.Script(func(fn string, _ int, _ map[string]any) (v hcstest.Verdict) {
				if fn == tt.fn {
					v.HR = 0x80004005
				}
				return v
			})
			if _, err := g.exec(tt.spec); err == nil {
				t.Fatal("it is started")
			}
			g.s.Script(nil)
			g.mustExec(web).end("first")
			g.nothingIsLost("web+run")
		})
	}
}

// Every process has the customary capabilities and the user that was asked for.
func TestUserInForeignGuest(t *testing.T) {
	for user, want := range map[string]string{"": `0:0 "" true`, "7": `7:0 "" true`, "7:8": `7:8 "" true`} {
		g := newForeignGuest(t)
		first := g.mustExec(vmm.ProcessSpec{ContainerID: "web", User: user})
		g.mustExec(vmm.ProcessSpec{ContainerID: "web", User: "www"}).end(`later [x] 0:0 "www" true`)
		g.mustExec(vmm.ProcessSpec{ContainerID: "web"}).end(`later [x] 0:0 "" true`)
		first.end("first [x] " + want)
	}
}

// A signal to a process that has exited is no error; one that went nowhere is.
func TestSignalInForeignGuest(t *testing.T) {
	g := newForeignGuest(t)
	first := g.mustExec(vmm.ProcessSpec{ContainerID: "web"})
	later := g.mustExec(vmm.ProcessSpec{ContainerID: "web"})
	if err := later.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if code, err := later.Wait(t.Context()); err != nil || code != 137 {
		t.Errorf("code %d, %v", code, err)
	}
	if err := later.Signal(t.Context(), 15); err != nil {
		t.Errorf("a process that has exited: %v", err)
	}
	inVM := g.mustExec(vmm.ProcessSpec{})
	if err := inVM.Signal(t.Context(), 15); err == nil {
		t.Error("the guest signals nothing outside containers, and that is a success")
	}
	if err := g.m.DeleteContainerState(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if err := first.Signal(t.Context(), 15); err == nil {
		t.Error("a container that is not there is signalled with success")
	}
	inVM.input.Close()
	if _, err := inVM.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// The first two processes of a container, started at the same time, find it together; a process whose start
// was given up does not stay, nor keep others out.
func TestStartsInForeignGuestAtOnce(t *testing.T) {
	g := newForeignGuest(t)
	hold, reached := make(chan struct{}), make(chan struct{})
	g.s.Script(on("(guest) ExecuteProcess", hcstest.Verdict{Before: hold}, reached))
	web := vmm.ProcessSpec{ContainerID: "web", Root: "/run/gcs/c/web/rootfs", Args: []string{"x"}}
	ctx, cancel := within(t)
	go func() { <-reached; cancel() }()
	if _, err := g.m.Exec(ctx, web); err == nil {
		t.Error("a start that was given up succeeds")
	}
	g.s.Script(nil)
	close(hold)
	started := make(chan *running, 4)
	for range cap(started) {
		go func() {
			p, err := g.exec(vmm.ProcessSpec{ContainerID: "web"})
			if err != nil {
				t.Error(err)
			}
			started <- p
		}()
	}
	var all []*running
	for range cap(started) {
		if p := <-started; p != nil {
			all = append(all, p)
		}
	}
	g.nothingIsLost("web+run")
	if err := g.m.DeleteContainerState(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	firsts := 0
	for _, p := range all {
		if code, err := p.Wait(t.Context()); code != 137 || err != nil {
			t.Errorf("code %d, %v", code, err)
		}
		if strings.HasPrefix(p.out.String(), "first") {
			firsts++
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if firsts > 1 {
		t.Errorf("%d processes are the first of their container", firsts)
	}
	g.nothingIsLost()
}

// Over the service's own connection the bundle is elsewhere too.
func TestBundleOverInternalConnection(t *testing.T) {
	bundle := make(chan string, 1)
	r := newRig(t, hcstest.Options{Exec: func(p hcstest.ProcessParameters, _ io.Reader, _, _ io.Writer) uint32 {
		var hosted struct {
			OciBundlePath    string
			OciSpecification specs.Spec
		}
		if err := json.Unmarshal(p.Hosted, &hosted); err != nil {
			return 1
		}
		if w := hosted.OciSpecification.Windows; w == nil || w.Network == nil || w.Network.NetworkNamespace == "" {
			return 2
		}
		bundle <- hosted.OciBundlePath
		return 0
	}})
	m := r.start(r.lcow(false))
	mountWebAndDB(t, m)
	spec := vmm.ProcessSpec{Args: []string{"x"}, ContainerID: "web", Root: "/run/gcs/c/web/rootfs"}
	p, err := m.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if b := <-bundle; b != "/run/gcs/c/vm+web" {
		t.Errorf("bundle %s", b)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	r.s.Wait()
	if lost := r.s.Lost(); len(lost) > 0 {
		t.Errorf("the guest has removed %q", lost)
	}
	spec.User = "www"
	if _, err := m.Exec(t.Context(), spec); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a user by name for the first process: %v", err)
	}
}

// A Windows guest is told the host's time zone, or UTC.
func TestTimeZone(t *testing.T) {
	host := hcsschema.TimeZoneInformation{Bias: -60, DaylightBias: -60,
		StandardName: "CET", StandardDate: &hcsschema.SystemTime{Month: 10, Day: 5, Hour: 3},
		DaylightName: "CEST", DaylightDate: &hcsschema.SystemTime{Month: 3, Day: 5, Hour: 2}}
	inherit := func() (hcsschema.TimeZoneInformation, error) { return host, nil }
	broken := errors.New("no time zone")
	for name, tt := range map[string]struct {
		zone func() (hcsschema.TimeZoneInformation, error)
		utc  bool
		want string
	}{
		"inherited": {inherit, false, `"DaylightName":"CEST"`},
		"not inherited": {inherit, true,
			`"StandardDate":{},"DaylightName":"Coordinated Universal Time"`},
		"not told":  {nil, false, `{"SystemType":"Container"}`},
		"not known": {func() (hcsschema.TimeZoneInformation, error) { return host, broken }, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hcstest.Options{})
			r.host.TimeZone = tt.zone
			o := hcs.DefaultWCOW("vm", "test", []string{`C:\base`, `C:\uvm`})
			o.ExternalGuestConnection, o.NoInheritHostTimezone = true, tt.utc
			m, err := hcs.CreateWCOW(t.Context(), r.host, o)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Start(t.Context()); (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, broken) {
				t.Fatal(err)
			}
			told := ""
			for _, c := range r.s.Trace() {
				if c.Fn == "(guest) Create" {
					told = c.Args["ContainerConfig"].(string)
				}
			}
			if !strings.Contains(told, tt.want) {
				t.Errorf("the guest is told %s", told)
			}
		})
	}
}
