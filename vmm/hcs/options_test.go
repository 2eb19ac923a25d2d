package hcs_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// Options that cannot be used are found before the service is asked for anything, and say why.
func TestBadOptions(t *testing.T) {
	for want, spoil := range map[string]func(*hcs.OptionsLCOW){
		"letters":               func(o *hcs.OptionsLCOW) { o.ID = `..\x` },
		"MemorySizeInMB":        func(o *hcs.OptionsLCOW) { o.MemorySizeInMB = 0 },
		"MemorySizeInMB 429496": func(o *hcs.OptionsLCOW) { o.MemorySizeInMB = 1<<32 - 1 },
		"ProcessorCount":        func(o *hcs.OptionsLCOW) { o.ProcessorCount = -1 },
		"EnableDeferredCommit":  func(o *hcs.OptionsLCOW) { o.EnableDeferredCommit, o.FullyPhysicallyBacked = true, true },
		"greater than 4":        func(o *hcs.OptionsLCOW) { o.SCSIControllerGUIDs, o.SCSIControllerCount = true, 5 },
		"must be 0 or 1":        func(o *hcs.OptionsLCOW) { o.SCSIControllerCount = 2 },
		"multiple of 4096":      func(o *hcs.OptionsLCOW) { o.VPMemSizeBytes = 0 },
		"RootFSType":            func(o *hcs.OptionsLCOW) { o.PreferredRootFSType = 7 },
		"must be given":         func(o *hcs.OptionsLCOW) { o.KernelFile = "" },
		"UseGuestConnection":    func(o *hcs.OptionsLCOW) { o.ExternalGuestConnection, o.UseGuestConnection = true, false },
		"persistent":            func(o *hcs.OptionsLCOW) { o.ExternalGuestConnection, o.Persistent = true, true },
		"JSON object":           func(o *hcs.OptionsLCOW) { o.AdditionHCSDocumentJSON = "[1]" },
	} {
		r := newRig(t, hcstest.Options{})
		o := r.lcow(false)
		spoil(&o)
		_, err := hcs.CreateLCOW(t.Context(), r.host, o)
		if !errors.Is(err, hcs.ErrOptions) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if n := r.calls("HcsCreateComputeSystem"); n != 0 {
			t.Errorf("%s: the service was called", want)
		}
	}
	r := newRig(t, hcstest.Options{})
	r.host.Build = 18000
	o := r.lcow(false)
	if _, err := hcs.CreateLCOW(t.Context(), r.host, o); !errors.Is(err, hcs.ErrOptions) ||
		!strings.Contains(err.Error(), "KernelDirect") {
		t.Error(err)
	}
	r.host.Build = 14393
	if _, err := hcs.CreateLCOW(t.Context(), r.host, o); !errors.Is(err, hcs.ErrOptions) ||
		!strings.Contains(err.Error(), "14393") {
		t.Error(err)
	}
	if _, err := hcs.CreateLCOW(t.Context(), hcs.Host{}, o); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no service: %v", err)
	}
}

func TestMissingFiles(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	o := r.lcow(false)
	o.RootFSFile = "other.img"
	if _, err := hcs.CreateLCOW(t.Context(), r.host, o); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), `C:\boot\other.img`) {
		t.Error(err)
	}
	w := hcs.DefaultWCOW("vm", "test", []string{`C:\thin`, `C:\uvm`})
	if _, err := hcs.CreateWCOW(t.Context(), r.host, w); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "UtilityVM") {
		t.Error(err)
	}
	if n := len(r.s.Trace()); n != 0 {
		t.Errorf("%d calls were made", n)
	}
}

// An external connection that nobody can serve is an error before the VM starts.
func TestExternalNeedsListener(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	r.host.Connect = nil
	m, err := hcs.CreateLCOW(t.Context(), r.host, r.lcow(true))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if n := r.calls("HcsStartComputeSystem"); n != 0 {
		t.Error("the VM was started")
	}
}

// What the documents of today look like: controllers by GUID, more than one of them.
func TestSeveralControllers(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	o := r.lcow(false)
	o.SCSIControllerGUIDs, o.SCSIControllerCount, o.VPMemDeviceCount = true, 4, 0
	m := r.start(o)
	if l := m.Limits(); l.SCSIControllers != 4 || l.SCSILUNs != 64 || l.VPMEMDevices != 0 || l.Observes {
		t.Errorf("%+v", l)
	}
	apply(t, m, vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Controller: 3, LUN: 1, Path: `C:\a.vhdx`},
		Mount: vmm.MappedDisk{Controller: 3, LUN: 1, MountPath: "/m"}})
	trace := r.s.Trace()
	raw, err := json.Marshal(trace[len(trace)-1])
	if err != nil || !strings.Contains(string(raw), "Scsi/305891a9-b251-5dfe-91a2-c25d9212275b/Attachments/1") {
		t.Errorf("%s %v", raw, err)
	}
}

func TestLimits(t *testing.T) {
	r := newRig(t, hcstest.Options{})
	o := r.lcow(false)
	o.PreferredRootFSType, o.RootFSFile = hcs.RootFSVHD, "rootfs.vhd"
	r.host.FS = append(files{`C:\boot\rootfs.vhd`}, bootFiles...)
	m := r.start(o)
	if l := m.Limits(); l.VPMEMReserved != 1 || l.SCSIControllers != 1 || !l.Plan9 {
		t.Errorf("%+v", l)
	}
	err := m.Apply(t.Context(), vmm.Change{Op: vmm.Add, Device: vmm.VPMEMDevice{Path: `C:\l\layer.vhd`}})
	if !errors.Is(err, vmm.ErrOccupied) {
		t.Errorf("the device of the root file system: %v", err)
	}
	w := newRig(t, hcstest.Options{}).startWCOW(false)
	if l := w.Limits(); !l.VSMB || !l.VSMBRetained || len(l.ReservedSCSI) != 1 || w.OS() != vmm.Windows {
		t.Errorf("%+v", l)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		hr      hcs.HRESULT
		matches []error
		holds   func(error) bool
	}{
		{0x80070005, []error{vmm.ErrAccessDenied}, nil},
		{0x80070006, []error{hcs.ErrInvalidHandle}, nil},
		{0x8007000D, []error{hcs.ErrInvalidData, errors.ErrUnsupported}, hcs.IsNotSupported},
		{0x80070015, []error{hcs.ErrNotReady}, nil},
		{0x80070020, []error{hcs.ErrSharingViolation}, nil},
		{0x80070032, []error{hcs.ErrNotSupported}, hcs.IsNotSupported},
		{0x80070057, []error{hcs.ErrInvalidParameter}, nil},
		{0x8007007F, []error{hcs.ErrExportNotFound}, nil},
		{0x8007048F, []error{hcs.ErrNotConnected}, nil},
		{0x80070490, []error{hcs.ErrElementNotFound}, hcs.IsNotExist},
		{0x80370105, []error{hcs.ErrInvalidState}, hcs.IsInvalidState},
		{0x80370110, []error{hcs.ErrAlreadyStopped, vmm.ErrGone}, hcs.IsAlreadyStopped},
		{0x80370118, []error{hcs.ErrTimeout}, hcs.IsTimeout},
		{0x8037011F, []error{hcs.ErrAlreadyStopped}, hcs.IsAlreadyStopped},
		{0xC0370103, nil, hcs.IsPending},
		{0xC0370105, []error{hcs.ErrInvalidState}, hcs.IsUnavailable},
		{0xC0370106, []error{hcs.ErrUnexpectedExit, vmm.ErrGone}, hcs.IsUnavailable},
		{0xC0370109, []error{hcs.ErrTimeout}, hcs.IsTimeout},
		{0xC037010B, []error{hcs.ErrNotSupported}, hcs.IsNotSupported},
		{0xC037010C, []error{hcs.ErrProtocolVersion}, nil},
		{0xC037010D, []error{hcs.ErrInvalidDocument, errors.ErrUnsupported}, hcs.IsNotSupported},
		{0xC037010E, []error{hcs.ErrDoesNotExist, vmm.ErrGone}, hcs.IsNotExist},
		{0xC037010F, []error{hcs.ErrAlreadyExists}, nil},
		{0xC0370110, []error{hcs.ErrAlreadyStopped, vmm.ErrGone}, hcs.IsUnavailable},
		{0xC0370112, []error{hcs.ErrUnknownFormat}, nil},
	} {
		err := error(&hcs.Error{Op: "modify compute system", System: "vm", HR: c.hr})
		for _, want := range c.matches {
			if !errors.Is(err, want) {
				t.Errorf("%v does not match %v", err, want)
			}
		}
		if c.holds != nil && !c.holds(err) {
			t.Errorf("%v: the predicate does not hold", err)
		}
		if errors.Is(err, vmm.ErrBusy) {
			t.Errorf("%v matches what it is not", err)
		}
	}
}

// Operation, code, its meaning, the file at fault and the error events are all in one message.
func TestErrorTellsAll(t *testing.T) {
	r := newRig(t, hcstest.Options{OldGuest: true})
	m := r.start(r.lcow(false))
	r.s.Step("add", hcstest.Injection{Function: "HcsModifyComputeSystem", Call: 1, HResult: "0x80070005",
		ResultDocument: json.RawMessage(`{"Error":-2147024891,"ErrorMessage":"no\nway","ErrorEvents":[
			{"Message":"cannot open the disk","Provider":"vmwp","EventId":12,"Source":"Storage"}]}`)})
	err := m.Apply(t.Context(), disk(0))
	for _, part := range []string{`C:\d\a.vhdx`, "modify compute system vm", "0x80070005", "access denied", "no way",
		"event Storage 12: cannot open the disk", "host not done"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
	r.s.Step("garbled", hcstest.Injection{Function: "HcsModifyComputeSystem", Call: 1, HResult: "0x80070005",
		ResultDocument: json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)})
	if err := m.Apply(t.Context(), disk(0)); err == nil || len(err.Error()) > 4096 {
		t.Errorf("%d bytes of error", len(err.Error()))
	}
}
