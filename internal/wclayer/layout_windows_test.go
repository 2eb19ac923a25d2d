package wclayer

import (
	"testing"
	"unsafe"

	"github.com/Microsoft/go-winio/pkg/guid"
)

// The layouts are those of the platform on 64-bit systems.
func TestLayouts(t *testing.T) {
	var i driverInfo
	var d layerDescriptor
	var c cimPath
	for _, tt := range []struct {
		what      string
		got, want uintptr
	}{
		{"driver info", unsafe.Sizeof(i), 16},
		{"driver info: home", unsafe.Offsetof(i.homeDir), 8},
		{"descriptor", unsafe.Sizeof(d), 32},
		{"descriptor: flags", unsafe.Offsetof(d.flags), 16},
		{"descriptor: path", unsafe.Offsetof(d.path), 24},
		{"GUID", unsafe.Sizeof(guid.GUID{}), 16},
		{"image", unsafe.Sizeof(c), 16},
		{"image: name", unsafe.Offsetof(c.name), 8},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %d bytes, the platform has %d", tt.what, tt.got, tt.want)
		}
	}
}
