package procs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/ocispec"
)

// maxTemporary bounds the tmpfs mounts of a partial spec.
const maxTemporary = 64

// mountFlags are the flags that a partial spec's mount may have.
var mountFlags = []string{"nosuid", "nodev", "noexec", "ro", "noatime", "relatime", "strictatime"}

// temporaryMounts returns the tmpfs mounts of a partial spec, such as /run, without those that every container has.
// Bind mounts are an error; other types are ignored.
func temporaryMounts(mounts []specs.Mount) ([]specs.Mount, error) {
	usual := ocispec.Default().Mounts
	var out []specs.Mount
	for _, m := range mounts {
		at := filepath.Clean("/" + m.Destination)
		switch {
		case m.Type == "bind" || m.Type == "none" || m.Type == "":
			return nil, fmt.Errorf("mount %q of type %q: %w", m.Destination, m.Type, gcsserver.ErrUnsupported)
		case m.Type != "tmpfs" || slices.ContainsFunc(usual, func(u specs.Mount) bool { return u.Destination == at }):
			continue
		case at == "/" || strings.HasPrefix(at+"/", "/proc/") || strings.HasPrefix(at+"/", "/sys/") ||
			len(out) == maxTemporary:
			return nil, fmt.Errorf("mount %q of type %q: %w", m.Destination, m.Type, gcsserver.ErrInvalid)
		}
		t := specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs"}
		for _, o := range m.Options {
			key, _, _ := strings.Cut(o, "=")
			if slices.Contains(mountFlags, o) ||
				slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes"}, key) && !strings.Contains(o, ",") {
				t.Options = append(t.Options, o)
			}
		}
		out = append(out, t)
	}
	return out, nil
}
