package vmm

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
)

// TestEveryKindInJSON: a Change of each kind is the same after it was in the journal, and its kind is in the tables
// in both directions.
func TestEveryKindInJSON(t *testing.T) {
	verity := &Verity{DataBytes: 4096, RootDigest: "00", Salt: "01", Algorithm: "sha256", BlockSize: 4096,
		SuperBlock: true}
	link := &Link{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400,
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
		Routes: []Route{{To: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::1"), OnLink: true,
			Source: netip.MustParseAddr("2001:db8::1"), Metric: 5}}}
	devices := []Device{
		SCSIDisk{Controller: 1, LUN: 2, Path: "/d", ReadOnly: true, Kind: PassThru, Format: FormatVHD, ExtensibleType: "x",
			Access: AccessGroup, Extents: []Extent{{Path: "/e", Offset: 512, Length: 1024}}},
		VPMEMDevice{Slot: 3, Path: "/p", Format: FormatRaw},
		VSMBShare{Name: "s", Path: `C:\s`, Options: VSMBOptions{ReadOnly: true}, AllowedFiles: []string{`C:\s\f`}},
		Plan9Share{Name: "9", Path: "/9", ReadOnly: true, AllowedFiles: []string{"f"}},
		NIC{Slot: 1, Ports: []PortForward{{Protocol: "tcp", HostIP: "127.0.0.1", HostPort: 8080, GuestPort: 80}},
			Namespace: "/run/netns/n", Link: link, Subnet: DefaultSubnet},
		VirtioFSShare{Slot: 2, Path: "/v", File: true, ReadOnly: true},
		WritableLayer{Path: `C:\scratch`},
	}
	mounts := []Mount{
		MappedDisk{MountPath: "/m", Controller: 1, LUN: 2, Partition: 3, ReadOnly: true, Options: []string{"o"},
			Filesystem: "ext4", Verity: verity},
		MappedPMEM{Slot: 3, MountPath: "/p", Offset: 1, Size: 2, Verity: verity},
		MappedDirectory{MountPath: "/d", Share: "9", ReadOnly: true},
		MappedVirtioFS{MountPath: "/v", Slot: 2, ReadOnly: true},
		NetworkInterface{ContainerID: "c", Slot: 1, Search: []string{"example.org"},
			DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Link: link,
			Subnet: DefaultSubnet},
		CombinedLayers{ContainerID: "c", RootPath: "/r", Layers: []GuestLayer{{ID: "i", Path: "/l"}}, ScratchPath: "/s",
			Filter: "UnionFS"},
		BlockCIMs{VolumeGUID: "v", CIMs: []BlockCIM{{Name: "n", LUN: 1}}, MountFlags: 16, ContainerID: "c"},
		CIMVolume{VolumeGUID: "v", Kind: CIMBlockFile, Images: []CIMImage{{Dir: `C:\b`, Name: "n"}}, Digest: []byte{1},
			DAX: true},
	}
	if len(devices) != len(deviceKinds) || len(mounts) != len(mountKinds) {
		t.Errorf("%d of %d devices and %d of %d mounts are tried", len(devices), len(deviceKinds), len(mounts),
			len(mountKinds))
	}
	for i := range max(len(devices), len(mounts)) {
		c := Change{Op: Remove}
		if i < len(devices) {
			c.Device = devices[i]
		}
		if i < len(mounts) {
			c.Mount = mounts[i]
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		var got Change
		if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s is %+v after it was written, %v", b, got, err)
		}
		if c.Mount != nil && c.Mount.Key(Windows) == "" {
			t.Errorf("%s has no key", c.Mount)
		}
	}
}
