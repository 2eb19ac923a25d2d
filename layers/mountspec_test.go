package layers_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

func rootfs(kind, source string, options ...string) []layers.RootfsMount {
	return []layers.RootfsMount{{Type: kind, Source: source, Options: options}}
}

func folders(paths ...string) (out []layers.Layer) {
	for _, p := range paths {
		out = append(out, layers.Layer{Folder: p})
	}
	return out
}

func TestParseRoot(t *testing.T) {
	const parents = `parentLayerPaths=["C:\\l\\app","C:\\l\\base"]`
	long := `C:\` + strings.Repeat(`abcdefgh\`, 40) + `l`
	for _, tt := range []struct {
		name    string
		folders []string
		mounts  []layers.RootfsMount
		want    layers.Described
	}{
		{"layer folders", []string{`C:\l\app`, `C:\l\base`, `C:\s`}, nil,
			layers.Described{Layers: folders(`C:\l\app`, `C:\l\base`), Scratch: `C:\s`}},
		{"layer folders of Linux", []string{"/l/base", "/s"}, nil,
			layers.Described{Layers: folders("/l/base"), Scratch: "/s"}},
		{"windows-layer", nil, rootfs("windows-layer", `C:\s`, "rw", parents),
			layers.Described{OS: vmm.Windows, Layers: folders(`C:\l\app`, `C:\l\base`), Scratch: `C:\s`}},
		{"lcow-layer", nil, rootfs("lcow-layer", `C:\s`, parents),
			layers.Described{OS: vmm.Linux, Layers: folders(`C:\l\app`, `C:\l\base`), Scratch: `C:\s`}},
		{"percent, quotes and other letters", nil, rootfs("lcow-layer", `C:\100%d`, `parentLayerPaths=["C:\\слой = \"1\""]`),
			layers.Described{OS: vmm.Linux, Layers: folders(`C:\слой = "1"`), Scratch: `C:\100%d`}},
		{"over 260 characters", []string{long, `\\?\C:\s`}, nil,
			layers.Described{Layers: folders(long), Scratch: `\\?\C:\s`}},
		{"partitions", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s\sandbox.vhdx`,
			`parent-partitioned-layers=[{"Path":"C:\\l.vhd","Partition":2},{"Path":"C:\\l.vhd","Partition":1},{"Path":"D:\\b.vhd"}]`),
			layers.Described{OS: vmm.Linux, Scratch: `C:\s\sandbox.vhdx`, Layers: []layers.Layer{
				{File: `C:\l.vhd`, Partition: 2}, {File: `C:\l.vhd`, Partition: 1}, {File: `D:\b.vhd`}}}},
		{"CimFS", nil, rootfs("CimFS", `C:\s`, parents, `parentCimPaths=["C:\\c\\2.cim","C:\\c\\1.cim"]`),
			layers.Described{OS: vmm.Windows, Scratch: `C:\s`,
				CIM: &wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\c`, Name: "2.cim"}}}},
		{"BlockCIM, one", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["\\\\.\\PHYSICALDRIVE3\\1.cim"]`,
			"blockCIMType=device"),
			layers.Described{OS: vmm.Windows, Scratch: `C:\s`, CIM: &wclayer.CIMMount{Kind: wclayer.BlockDevice,
				Image: wclayer.CIM{Dir: `\\.\PHYSICALDRIVE3`, Name: "1.cim"}}}},
		{"BlockCIM, merged", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\2.bcim\\2.cim","C:\\1.bcim\\1.cim"]`,
			"blockCIMType=file", `mergedCIMPath=C:\m.bcim\m.cim`),
			layers.Described{OS: vmm.Windows, Scratch: `C:\s`, CIM: &wclayer.CIMMount{Kind: wclayer.BlockFile,
				Image:   wclayer.CIM{Dir: `C:\m.bcim`, Name: "m.cim"},
				Sources: []wclayer.CIM{{Dir: `C:\2.bcim`, Name: "2.cim"}, {Dir: `C:\1.bcim`, Name: "1.cim"}}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := layers.ParseRoot(tt.folders, tt.mounts)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, *got, cmpopts.IgnoreUnexported(layers.Described{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseRootRefuses(t *testing.T) {
	const one = `parentLayerPaths=["C:\\l"]`
	two := rootfs("windows-layer", `C:\s`, one)
	for _, tt := range []struct {
		name    string
		folders []string
		mounts  []layers.RootfsMount
		text    string // in the error
	}{
		{"nothing", nil, nil, "0 layer folders"},
		{"scratch alone", []string{`C:\s`}, nil, "1 layer folders"},
		{"both", []string{`C:\l`, `C:\s`}, two, "give one of them"},
		{"two mounts", nil, append(two, two...), "give one"},
		{"a target", nil, []layers.RootfsMount{{Type: "windows-layer", Source: `C:\s`, Target: `C:\t`,
			Options: []string{one}}}, "the root has none"},
		{"unknown type", nil, rootfs("overlay", `C:\s`, one), `"overlay" is unknown`},
		{"type with other case", nil, rootfs("cimfs", `C:\s`, one), `"CimFS"`},
		{"unknown option", nil, rootfs("windows-layer", `C:\s`, one, "uid=0"), `"uid=0" is unknown`},
		{"option of another type", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s`, one), "is unknown"},
		{"option twice", nil, rootfs("windows-layer", `C:\s`, one, one), "twice"},
		{"option without a value", nil, rootfs("windows-layer", `C:\s`, "parentLayerPaths"), "value"},
		{"read-only", nil, rootfs("windows-layer", `C:\s`, one, "ro"), "writable"},
		{"no parents option", nil, rootfs("windows-layer", `C:\s`), "parentLayerPaths is missing"},
		{"empty list", nil, rootfs("windows-layer", `C:\s`, "parentLayerPaths=[]"), "0 entries"},
		{"null list", nil, rootfs("windows-layer", `C:\s`, "parentLayerPaths=null"), "0 entries"},
		{"no list", nil, rootfs("windows-layer", `C:\s`, `parentLayerPaths=C:\l`), "no list"},
		{"more than a list", nil, rootfs("windows-layer", `C:\s`, one+`["C:\\m"]`), "goes on"},
		{"empty path", nil, rootfs("windows-layer", `C:\s`, `parentLayerPaths=[""]`), "empty"},
		{"no scratch", nil, rootfs("windows-layer", "", one), "scratch is empty"},
		{"relative", []string{`l\base`, `C:\s`}, nil, "absolute"},
		{"relative to a drive", []string{`C:l`, `C:\s`}, nil, "absolute"},
		{"relative scratch", []string{`C:\l`, `s`}, nil, "absolute"},
		{"share", []string{`\\server\share\l`, `C:\s`}, nil, "network share"},
		{"share, long form", []string{`\\?\UNC\server\share\l`, `C:\s`}, nil, "network share"},
		{"device", []string{`\\.\PHYSICALDRIVE1`, `C:\s`}, nil, "device"},
		{"NUL", []string{"C:\\l\x00", `C:\s`}, nil, "NUL"},
		{"twice", []string{`C:\l\Base`, `c:/L/base/`, `C:\s`}, nil, "duplicate"},
		{"scratch among the layers", []string{`C:\l`, `C:\S`, `C:\s\`}, nil, "duplicate"},
		{"partition twice", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s`,
			`parent-partitioned-layers=[{"Path":"C:\\l.vhd","Partition":1},{"Path":"c:\\L.vhd","Partition":1}]`), "duplicate"},
		{"partition negative", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s`,
			`parent-partitioned-layers=[{"Path":"C:\\l.vhd","Partition":-1}]`), "no list"},
		{"partition with more", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s`,
			`parent-partitioned-layers=[{"Path":"C:\\l.vhd","Offset":1}]`), "Offset"},
		{"partition relative", nil, rootfs("lcow-partitioned-layer", "", `scratch=C:\s`,
			`parent-partitioned-layers=[{"Path":"l.vhd"}]`), "absolute"},
		{"CimFS, unequal", nil, rootfs("CimFS", `C:\s`, one, `parentCimPaths=["C:\\c\\2.cim","C:\\c\\1.cim"]`),
			"1 layer folders and 2 images"},
		{"CimFS, empty", nil, rootfs("CimFS", `C:\s`, "parentLayerPaths=[]", "parentCimPaths=[]"), "0 entries"},
		{"CimFS, no images", nil, rootfs("CimFS", `C:\s`, one), "parentCimPaths is missing"},
		{"CimFS, relative image", nil, rootfs("CimFS", `C:\s`, one, `parentCimPaths=["1.cim"]`), "absolute"},
		{"BlockCIM, no type", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\b\\1.cim"]`), "device or file"},
		{"BlockCIM, other type", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\b\\1.cim"]`, "blockCIMType=tape"),
			"device or file"},
		{"BlockCIM, not merged", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\2\\2.cim","C:\\1\\1.cim"]`,
			"blockCIMType=file"), "mergedCIMPath is missing"},
		{"BlockCIM, merged from one", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\1\\1.cim"]`, "blockCIMType=file",
			`mergedCIMPath=C:\m\m.cim`), "nothing to merge"},
		{"BlockCIM, twice", nil, rootfs("BlockCIM", `C:\s`, `parentCimPaths=["C:\\1\\1.cim","c:/1/1.CIM"]`,
			"blockCIMType=file", `mergedCIMPath=C:\m\m.cim`), "duplicate"},
		{"option of a megabyte", nil, rootfs("windows-layer", `C:\s`, `parentLayerPaths=["`+strings.Repeat("x", 2<<20)+`"]`),
			"bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := layers.ParseRoot(tt.folders, tt.mounts)
			if !errors.Is(err, layers.ErrRootDescription) || !errors.Is(err, layers.ErrInvalid) ||
				!strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q in it", err, tt.text)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func FuzzParseRoot(f *testing.F) {
	f.Add("windows-layer", `C:\s`, `parentLayerPaths=["C:\\l"]`, `rw`)
	f.Add("BlockCIM", `C:\s`, `parentCimPaths=["C:\\b\\1.cim"]`, "blockCIMType=file")
	f.Add("lcow-partitioned-layer", "", `scratch=C:\s`, `parent-partitioned-layers=[{"Path":"C:\\l.vhd","Partition":1}]`)
	f.Fuzz(func(t *testing.T, kind, source, one, two string) {
		d, err := layers.ParseRoot(nil, rootfs(kind, source, one, two))
		if (err == nil) != (d != nil && d.Scratch != "" && (len(d.Layers) > 0 || d.CIM != nil)) && err == nil {
			t.Errorf("nothing described, and no error: %+v", d)
		}
	})
}
