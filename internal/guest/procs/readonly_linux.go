package procs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/ocispec"
)

// readOnlyPlaces returns the read-only paths of a spec that may be writable without an error of crun: it remounts them
// read-only in a second step, and ignores a failure of that if the mount has no other flags, such as nosuid. Mounts
// below /proc and /sys have other flags.
func readOnlyPlaces(spec *specs.Spec) (places []string) {
	if spec.Root.Readonly {
		places = append(places, "/")
	}
	for _, m := range spec.Mounts {
		if ocispec.IsBind(m) && slices.Contains(m.Options, "ro") {
			places = append(places, m.Destination)
		}
	}
	places = append(places, spec.Linux.ReadonlyPaths...)
	return slices.DeleteFunc(places, func(p string) bool {
		return strings.HasPrefix(p, "/proc/") || strings.HasPrefix(p+"/", "/sys/")
	})
}

// checkReadOnly returns a function that checks i.fixed in a container whose program was not started yet, or nil if
// there is nothing to check.
func (i *instance) checkReadOnly() func(pid int) error {
	if len(i.fixed) == 0 {
		return nil
	}
	return func(pid int) error {
		root, err := openRoot(fmt.Sprintf("/proc/%d/root", pid))
		if err != nil {
			return err
		}
		defer root.close()
		for _, place := range i.fixed {
			if err := root.checkReadOnly(place); err != nil {
				return fmt.Errorf("%q is to be read-only: %w", place, err)
			}
		}
		return nil
	}
}

var errWritable = errors.New("the kernel has not made it so")

// checkReadOnly returns an error unless a path is on a read-only mount or does not exist.
func (r rootDir) checkReadOnly(place string) error {
	f, err := r.open(place, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return errWritable
	}
	return nil
}
