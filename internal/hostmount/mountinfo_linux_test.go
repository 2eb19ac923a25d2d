package hostmount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEachMount: names with escapes, lines longer than 64 KiB, and lines that cannot be read.
func TestEachMount(t *testing.T) {
	info := filepath.Join(t.TempDir(), "mountinfo")
	lines := []string{
		`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw`,
		`23 22 0:50 / /a\040b\011c\012d\134e\043f rw - tmpfs tmpfs rw`,
		`24 22 0:51 / /long rw - overlay overlay ro,lowerdir=` + strings.Repeat("/layer:", 20_000),
		`25 22 x:1 / /torn rw - tmpfs tmpfs rw`,
		`26 22`,
		``,
		`27 22 259:4 / /not\9escaped\ rw - tmpfs tmpfs rw`,
	}
	if err := os.WriteFile(info, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []MountLine
	if err := EachMount(info, func(m MountLine) { got = append(got, m) }); err != nil {
		t.Fatal(err)
	}
	want := []MountLine{{unix.Mkdev(8, 1), "/"}, {unix.Mkdev(0, 50), "/a b\tc\nd\\e#f"}, {unix.Mkdev(0, 51), "/long"},
		{unix.Mkdev(259, 4), `/not\9escaped\`}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
