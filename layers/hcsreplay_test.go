package layers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// scenario is one folder of the conformance data; see testdata/hcs/README.md.
type scenario struct {
	Name           string
	OSBuild        uint32
	Processors     uint32 `json:"hostLogicalProcessors"`
	SynchronousHCS bool
	Files          []fixture
	Defects        []struct{ Step, Text string }
	Steps          []step
	head           bool // of the newer set
	trace          []hcstest.Call
}

type fixture struct {
	Path, Kind, Target string
	Size               int64
}

type step struct {
	Step, Op, UVM string
	Inputs        inputs
	Inject        []hcstest.Injection
	Result        json.RawMessage
	Error         *struct{ Text, Template, Sentinel string }
	Panic         string
}

type inputs struct {
	Options           json.RawMessage
	GuestRoot         string
	ContainerRootPath string
	ContainerID       string
	LayerFolders      []string
	Operation         []string
	All               bool
	Paths             []string
	Path              string
}

func loadScenario(t *testing.T, dir string) *scenario {
	t.Helper()
	var s scenario
	raw, err := os.ReadFile(filepath.Join(dir, "scenario.json"))
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err = os.ReadFile(filepath.Join(dir, "trace.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		var c hcstest.Call
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		s.trace = append(s.trace, c)
	}
	s.head = strings.Contains(filepath.ToSlash(dir), "/head/")
	return &s
}

// windowsFiles is the file system of a scenario: Windows paths as text, on any system.
type windowsFiles struct{ byPath map[string]fixture }

func newWindowsFiles(files []fixture) *windowsFiles {
	w := &windowsFiles{byPath: map[string]fixture{}}
	for _, f := range files {
		w.put(f)
	}
	return w
}

func (w *windowsFiles) put(f fixture) {
	w.byPath[hostpath.Identity(f.Path)] = f
	for dir := f.Path; strings.Count(dir, `\`) > 1; {
		dir = dir[:strings.LastIndex(dir, `\`)]
		if _, ok := w.byPath[hostpath.Identity(dir)]; !ok {
			w.byPath[hostpath.Identity(dir)] = fixture{Path: dir, Kind: "dir"}
		}
	}
}

func (w *windowsFiles) Stat(path string) (fs.FileInfo, error) {
	f, ok := w.byPath[hostpath.Identity(path)]
	if ok && f.Kind == "link" {
		return w.Stat(f.Target)
	}
	if !ok {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return fileInfo{f}, nil
}

func (w *windowsFiles) EvalSymlinks(path string) (string, error) {
	f, ok := w.byPath[hostpath.Identity(path)]
	switch {
	case !ok:
		return "", &fs.PathError{Op: "readlink", Path: path, Err: fs.ErrNotExist}
	case f.Kind == "link":
		return w.EvalSymlinks(f.Target)
	}
	return f.Path, nil
}

func (w *windowsFiles) CopyFile(dst, src string) error {
	f, ok := w.byPath[hostpath.Identity(src)]
	if !ok {
		return &fs.PathError{Op: "open", Path: src, Err: fs.ErrNotExist}
	}
	f.Path = dst
	w.put(f)
	return nil
}

type fileInfo struct{ f fixture }

func (i fileInfo) Name() string       { return hostpath.Base(i.f.Path) }
func (i fileInfo) Size() int64        { return i.f.Size }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) IsDir() bool        { return i.f.Kind == "dir" }
func (i fileInfo) Sys() any           { return nil }
func (i fileInfo) Mode() fs.FileMode {
	if i.IsDir() {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// replay does the steps of a scenario against the service in memory.
type replay struct {
	t       *testing.T
	s       *scenario
	service *hcstest.Service
	calls   recorder
	files   *windowsFiles
	mounter layers.Mounter
	host    hcs.Host
	vms     map[string]*uvm.UtilityVM
}

// recorder is what a replay needs of the service: in this process, or behind the libraries of Windows.
type recorder interface {
	Step(name string, injections ...hcstest.Injection)
	Trace() []hcstest.Call
	Wait()
}

// newReplay creates a world that is as lenient as the one that the scenarios were recorded in;
// newStrictReplay one with the service's rules in force.
func newReplay(t *testing.T, s *scenario) *replay       { return newWorldFor(t, s, true) }
func newStrictReplay(t *testing.T, s *scenario) *replay { return newWorldFor(t, s, false) }

func newWorldFor(t *testing.T, s *scenario, lenient bool) *replay {
	sockets := hcstest.NewSockets()
	service := hcstest.New(hcstest.Options{Processors: s.Processors, Synchronous: s.SynchronousHCS,
		OldGuest: !s.head, Lenient: lenient, Access: !lenient, Sockets: sockets})
	files := newWindowsFiles(s.Files)
	host := wclayer.New(wclayer.Options{API: wclayertest.New(service),
		Sleep: func(context.Context, time.Duration) error { return nil }})
	return &replay{t: t, s: s, service: service, calls: service, files: files, vms: map[string]*uvm.UtilityVM{},
		mounter: layers.Mounter{Host: host}.WithNames(files),
		host: hcs.Host{API: service, Grant: host.GrantVMAccess, FS: files, Build: s.OSBuild,
			Listen: sockets.Listen, Connect: hcs.ConnectGCS, FileID: func(string) error {
				if s.Name == "wcow-xenon-fileid-fails" {
					return errors.New("the file system has no file identities")
				}
				return nil
			}},
	}
}

// do does one step and returns its results.
func (r *replay) do(ctx context.Context, st step) (any, error) {
	vm := r.vmOf(st)
	switch st.Op {
	case "CreateLCOW", "CreateWCOW":
		return r.create(ctx, st)
	case "Start":
		return nil, vm.Machine().(*hcs.Machine).Start(ctx)
	case "Close":
		return nil, vm.Close()
	case "MountContainerLayers", "MountLCOWLayers", "MountWCOWLayers":
		return r.mounter.MountContainerLayers(ctx, st.Inputs.LayerFolders, st.Inputs.GuestRoot, vm)
	case "UnmountContainerLayers":
		return nil, r.mounter.UnmountContainerLayers(ctx, st.Inputs.LayerFolders, st.Inputs.ContainerRootPath, vm,
			operation(st.Inputs.Operation))
	case "ImageLayers.Release":
		return nil, r.mounter.NewImageLayers(vm, st.Inputs.GuestRoot, st.Inputs.LayerFolders).Release(ctx, st.Inputs.All)
	case "GetHCSLayers":
		list, err := r.mounter.GetHCSLayers(ctx, vm, st.Inputs.Paths)
		if len(list) == 0 {
			return nil, err
		}
		return list, err
	case "(delete file)":
		gone := hostpath.Identity(st.Inputs.Path)
		for path := range r.files.byPath {
			if path == gone || strings.HasPrefix(path, gone+"/") {
				delete(r.files.byPath, path)
			}
		}
		return nil, nil
	}
	r.t.Fatalf("step %q: unknown operation %q", st.Step, st.Op)
	return nil, nil
}

func operation(names []string) (op layers.UnmountOperation) {
	bits := map[string]layers.UnmountOperation{"SCSI": layers.UnmountOperationSCSI,
		"VSMB": layers.UnmountOperationVSMB, "VPMEM": layers.UnmountOperationVPMEM}
	for _, n := range names {
		op |= bits[n]
	}
	return op
}

// vmOf returns the VM of a step: that of its name, or of the newer set the only one.
func (r *replay) vmOf(st step) *uvm.UtilityVM {
	vm := r.vms[st.UVM]
	if st.UVM == "" && len(r.vms) == 1 && r.s.head {
		for _, only := range r.vms {
			vm = only
		}
	}
	return vm
}

func (r *replay) create(ctx context.Context, st step) (any, error) {
	var m *hcs.Machine
	os := vmm.Linux
	decode := func(into any) {
		if err := json.Unmarshal(st.Inputs.Options, into); err != nil {
			r.t.Fatal(err)
		}
	}
	var err error
	if st.Op == "CreateWCOW" {
		os = vmm.Windows
		var o hcs.OptionsWCOW
		decode(&o)
		m, err = hcs.CreateWCOW(ctx, r.host, o)
	} else {
		o := hcs.OptionsLCOW{GuestGeneration: hcs.Guest2021}
		if r.s.head {
			o.GuestGeneration = hcs.GuestCurrent
		}
		decode(&o)
		m, err = hcs.CreateLCOW(ctx, r.host, o)
	}
	if err != nil {
		return nil, err
	}
	id := st.UVM
	if id == "" {
		id = m.ID()
	}
	vm, err := uvm.Open(ctx, "", func(context.Context) (vmm.Machine, error) { return m, nil }, uvm.Options{})
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	r.vms[id] = vm
	return map[string]any{"id": m.ID(), "os": string(os), "processorCount": m.ProcessorCount()}, nil
}

// sentinels are the errors that hcsshim's error values of these names correspond to.
var sentinels = map[string]error{"ErrNotAttached": uvm.ErrNotAttached, "ErrNoSCSIControllers": uvm.ErrNoSCSIControllers}

// fromBrief creates a call of which only the brief form is known.
func fromBrief(text string) hcstest.Call { return hcstest.Call{Fn: text, HR: "0x00000000"} }

// brief is a call in one line, as the table of deviations spells calls.
func brief(c hcstest.Call) string {
	part := func(v any, keys ...string) string {
		for _, k := range keys {
			m, _ := v.(map[string]any)
			v = m[k]
		}
		if v == nil {
			return ""
		}
		return fmt.Sprint(v)
	}
	a := any(c.Args)
	fields := []string{c.Fn}
	add := func(s string) {
		if s != "" {
			fields = append(fields, s)
		}
	}
	switch c.Fn {
	case "HcsModifyComputeSystem":
		add(part(a, "configuration", "RequestType"))
		add(strings.TrimPrefix(part(a, "configuration", "ResourcePath"), "VirtualMachine/Devices/"))
		add(part(a, "configuration", "Settings", "Name"))
		add(part(a, "configuration", "GuestRequest", "RequestType"))
		add(part(a, "configuration", "GuestRequest", "ResourceType"))
		add(part(a, "configuration", "GuestRequest", "Settings", "ContainerRootPath"))
	case "(guest) ModifySettings":
		add(part(a, "Request", "RequestType"))
		add(part(a, "Request", "ResourceType"))
	default:
		add(part(a, "path"))
		add(part(a, "name"))
		add(part(a, "id"))
	}
	if c.HR != "0x00000000" && c.HR != "0xc0370103" {
		add(c.HR)
	}
	return strings.Join(fields, " ")
}

func briefs(calls []hcstest.Call) []string {
	out := make([]string, len(calls))
	for i, c := range calls {
		out[i] = brief(c)
	}
	return out
}

// compared picks the calls of a step that are to be compared, without what is not.
func compared(calls []hcstest.Call, name string) []hcstest.Call {
	var out []hcstest.Call
	for _, c := range calls {
		if c.Step != name || c.Fn == "(notification)" || c.Fn == "HcsGetComputeSystemProperties" {
			continue
		}
		args := map[string]any{}
		for k, v := range c.Args {
			if !slices.Contains([]string{"context", "callback", "callbackHandle"}, k) {
				args[k] = v
			}
		}
		out = append(out, hcstest.Call{Fn: c.Fn, Args: args, HR: c.HR})
	}
	return out
}
