package hcsschema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded returns the documents that were recorded of hcsshim for a function, with where they stand.
func recorded(t *testing.T, fn, argument string) map[string]json.RawMessage {
	t.Helper()
	out := map[string]json.RawMessage{}
	for _, pattern := range []string{"../layers/testdata/hcs/*/trace.jsonl", "../layers/testdata/hcs/head/*/trace.jsonl"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range bytes.Lines(raw) {
				var c struct {
					Seq  int
					Fn   string
					Args map[string]json.RawMessage
				}
				if err := json.Unmarshal(line, &c); err != nil {
					t.Fatal(err)
				}
				if c.Fn == fn && c.Args[argument] != nil {
					out[fmt.Sprintf("%s#%d", filepath.Base(filepath.Dir(f)), c.Seq)] = c.Args[argument]
				}
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("nothing was recorded of %s", fn)
	}
	return out
}

// same decodes a document strictly, writes it again and compares: nothing lost, nothing added.
func same(t *testing.T, name string, doc json.RawMessage, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Errorf("%s: %v in %s", name, err, doc)
		return
	}
	ours, err := json.Marshal(into)
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(doc, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(ours, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: (-recorded +ours)\n%s", name, diff)
	}
}

func TestCreateDocumentsRoundTrip(t *testing.T) {
	for name, doc := range recorded(t, "HcsCreateComputeSystem", "configuration") {
		if strings.HasPrefix(name, "lcow-create-merge") {
			continue // holds a member that somebody made up
		}
		same(t, name, doc, &ComputeSystem{})
	}
}

// settingsOf returns the type of the settings at a resource path.
func settingsOf(path string) any {
	switch {
	case strings.Contains(path, "/Scsi/"):
		return &Attachment{}
	case strings.Contains(path, "/Mappings/"):
		return &VirtualPMemMapping{}
	case strings.Contains(path, "/VirtualPMem/"):
		return &VirtualPMemDevice{}
	case path == VSMBSharesPath:
		return &VirtualSmbShare{}
	case path == Plan9SharesPath:
		return &Plan9Share{}
	}
	return nil
}

// guestSettingsOf returns the type of the settings of a guest request.
func guestSettingsOf(r ResourceType, windows bool) any {
	linux := map[ResourceType]any{
		ResourceMappedVirtualDisk: &LCOWMappedVirtualDisk{}, ResourceVPMemDevice: &LCOWMappedVPMemDevice{},
		ResourceCombinedLayers: &LCOWCombinedLayers{}, ResourceSCSIDevice: &SCSIDevice{},
	}
	if windows {
		linux = map[ResourceType]any{ResourceMappedVirtualDisk: &WCOWMappedVirtualDisk{},
			ResourceCombinedLayers: &WCOWCombinedLayers{}, ResourceHvSocket: &HvSocketAddress{}}
	}
	return linux[r]
}

type rawRequest struct {
	ResourcePath string          `json:",omitempty"`
	RequestType  RequestType     `json:",omitempty"`
	Settings     json.RawMessage `json:",omitempty"`
	GuestRequest *rawGuest       `json:",omitempty"`
}

type rawGuest struct {
	RequestType  RequestType     `json:",omitempty"`
	ResourceType ResourceType    `json:",omitempty"`
	Settings     json.RawMessage `json:",omitempty"`
}

func checkGuest(t *testing.T, name string, g rawGuest) {
	t.Helper()
	into := guestSettingsOf(g.ResourceType, strings.HasPrefix(name, "wcow"))
	if into == nil {
		t.Errorf("%s: guest resource %s has no type", name, g.ResourceType)
		return
	}
	same(t, name, g.Settings, into)
}

func TestModifyRequestsRoundTrip(t *testing.T) {
	for name, doc := range recorded(t, "HcsModifyComputeSystem", "configuration") {
		same(t, name, doc, &rawRequest{})
		var r rawRequest
		if err := json.Unmarshal(doc, &r); err != nil {
			t.Fatal(err)
		}
		if r.Settings != nil {
			if into := settingsOf(r.ResourcePath); into == nil {
				t.Errorf("%s: %s has no type", name, r.ResourcePath)
			} else {
				same(t, name, r.Settings, into)
			}
		}
		if r.GuestRequest != nil {
			checkGuest(t, name, *r.GuestRequest)
		}
	}
	for name, doc := range recorded(t, "(guest) ModifySettings", "Request") {
		var g rawGuest
		if err := json.Unmarshal(doc, &g); err != nil {
			t.Fatal(err)
		}
		checkGuest(t, name, g)
	}
}

// The request types themselves leave out what is zero.
func TestZeroValuesAreLeftOut(t *testing.T) {
	for want, v := range map[string]any{
		`{}`: ModifySettingRequest{},
		`{"ResourcePath":"VirtualMachine/Devices/Scsi/0/Attachments/0","RequestType":"Remove"}`: ModifySettingRequest{
			ResourcePath: SCSIPath(Controller(0, false), 0), RequestType: RequestRemove},
		`{"GuestRequest":{"RequestType":"Remove","ResourceType":"SCSIDevice","Settings":{}}}`: ModifySettingRequest{
			GuestRequest: &GuestRequest{RequestType: RequestRemove, ResourceType: ResourceSCSIDevice, Settings: SCSIDevice{}}},
		`{"Devices":{"Scsi":{"0":{}},"Plan9":{}},"RegistryChanges":{},"GuestConnection":{}}`: VirtualMachine{
			Devices:         &Devices{Scsi: map[string]Scsi{"0": {}}, Plan9: &Plan9{}},
			RegistryChanges: &RegistryChanges{}, GuestConnection: &GuestConnection{}},
		`{"MappingInfo":{"DeviceSizeInBytes":4096}}`: LCOWMappedVPMemDevice{MappingInfo: &LCOWVPMemMappingInfo{DeviceSizeInBytes: 4096}},
		`{"CimName":"","Lun":0}`:                     BlockCIM{},
	} {
		got, err := json.Marshal(v)
		if err != nil || string(got) != want {
			t.Errorf("%+v: %s (%v), want %s", v, got, err, want)
		}
	}
}

func TestControllerGUIDs(t *testing.T) {
	for n, want := range []string{
		"df6d0690-79e5-55b6-a5ec-c1e2f77f580a", "0110f83b-de10-5172-a266-78bca56bf50a",
		"b5d2d8d4-3a75-51bf-945b-3444dc6b8579", "305891a9-b251-5dfe-91a2-c25d9212275b",
	} {
		if got := ControllerGUID(uint8(n)); got != want {
			t.Errorf("controller %d is %s, want %s", n, got, want)
		}
	}
	if got := SCSIPath(Controller(1, true),
		3); got != "VirtualMachine/Devices/Scsi/0110f83b-de10-5172-a266-78bca56bf50a/Attachments/3" {
		t.Error(got)
	}
	if got := VPMemMappingPath(2, 1<<20); got != "VirtualMachine/Devices/VirtualPMem/Devices/2/Mappings/1048576" {
		t.Error(got)
	}
}
