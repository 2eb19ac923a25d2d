package volume

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/stratavm/strata/internal/hostpath"
)

// Type is the kind of a mount.
type Type string

// The kinds of mounts.
const (
	Bind   Type = "bind"   // a directory or file of the host
	Named  Type = "volume" // a volume of the state directory; without a name, one that is removed with the container
	Memory Type = "tmpfs"
)

// ErrInvalid is matched by errors about an invalid mount.
var ErrInvalid = errors.New("invalid mount")

// Mount is a mount requested by the user.
type Mount struct {
	Type Type
	// Source is an absolute path of the host, the name of a volume, or empty.
	Source   string
	Target   string // absolute, in the container
	ReadOnly bool
	// NoCopy: do not fill an empty volume from the image's directory at Target.
	NoCopy bool
	// Options are the mount options of a tmpfs.
	Options []string
}

func (m Mount) String() string { return fmt.Sprintf("%s %q at %q", m.Type, m.Source, m.Target) }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// ParseVolume parses the value of docker's --volume: TARGET, SOURCE:TARGET or SOURCE:TARGET:OPTIONS. A SOURCE with a
// slash, or "." or "..", is a path; anything else is the name of a volume.
func ParseVolume(s string) (m Mount, err error) {
	parts := strings.Split(s, ":")
	if runtime.GOOS == "windows" && len(parts) > 1 && len(parts[0]) == 1 && strings.HasPrefix(parts[1], `\`) {
		parts = append([]string{parts[0] + ":" + parts[1]}, parts[2:]...)
	}
	m.Type = Named
	switch {
	case len(parts) == 1:
		m.Target = parts[0]
	case len(parts) == 2, len(parts) == 3 && !strings.HasPrefix(parts[2], "/"):
		m.Source, m.Target = parts[0], parts[1]
		if m.Source == "" {
			return m, invalid("%q: the source is empty: give SOURCE:TARGET", s)
		}
	default:
		return m, invalid("%q: give SOURCE:TARGET or SOURCE:TARGET:ro; for a path with a colon: "+
			"--mount type=bind,source=PATH,target=PATH", s)
	}
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				m.ReadOnly = true
			case "rw", "":
			case "nocopy":
				m.NoCopy = true
			default:
				return m, invalid("%q: option %q is not supported; use ro, rw or nocopy", s, o)
			}
		}
	}
	if isPath(m.Source) {
		m.Type = Bind
		if m.NoCopy {
			return m, invalid("%q: nocopy is for volumes, not for folders of the host", s)
		}
	}
	return m.complete(s)
}

func isPath(source string) bool {
	return strings.ContainsAny(source, `/\`) || source == "." || source == ".."
}

// quoting is the hint on paths with special characters in docker's --mount.
const quoting = `with a comma or a line break it is quoted, as "source=a,b"`

// ParseMount parses the value of docker's --mount: KEY=VALUE,..., a line of CSV.
func ParseMount(s string) (m Mount, err error) {
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil {
		return m, invalid("%q: %w", s, err)
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return m, invalid("%q: it has more than one line: %s", s, quoting)
	}
	m.Type = Named
	var size, mode string
	for _, f := range fields {
		key, value, set := strings.Cut(strings.TrimSpace(f), "=")
		key = strings.ToLower(key)
		var flag *bool
		switch key {
		case "readonly", "ro":
			flag = &m.ReadOnly
		case "volume-nocopy":
			flag = &m.NoCopy
		}
		switch {
		case flag != nil && !set:
			*flag = true
		case flag != nil:
			if *flag, err = strconv.ParseBool(value); err != nil {
				return m, invalid("%q: %s=%q: use true or false", s, key, value)
			}
		case !set:
			return m, invalid("%q: %q: give KEY=VALUE; %s", s, f, quoting)
		case key == "type":
			m.Type = Type(value)
		case key == "source" || key == "src":
			m.Source = value
		case key == "target" || key == "dst" || key == "destination":
			m.Target = value
		case key == "tmpfs-size":
			size = value
		case key == "tmpfs-mode":
			mode = value
		default:
			return m, invalid("%q: %q is not supported", s, key)
		}
	}
	if err := m.fits(size, mode); err != nil {
		return m, invalid("%q: %w", s, err)
	}
	return m.complete(s)
}

// fits returns an error for fields that are for another type of mount, and sets the options of a tmpfs.
func (m *Mount) fits(size, mode string) error {
	switch m.Type {
	case Bind, Named:
		if size != "" || mode != "" {
			return errors.New("tmpfs-size and tmpfs-mode are for type=tmpfs")
		}
		if m.Type == Bind && m.NoCopy {
			return errors.New("volume-nocopy is for type=volume")
		}
		if m.Type == Bind && m.Source == "" {
			return errors.New("a bind needs source=PATH")
		}
	case Memory:
		if m.Source != "" || m.NoCopy {
			return errors.New("type=tmpfs has no source")
		}
		m.Options = append(m.Options, "nosuid", "nodev", "noexec")
		if size != "" {
			n, err := parseBytes(size)
			if err != nil {
				return fmt.Errorf("tmpfs-size=%q: %w", size, err)
			}
			m.Options = append(m.Options, fmt.Sprintf("size=%d", n))
		}
		if mode != "" {
			if _, err := strconv.ParseUint(mode, 8, 12); err != nil {
				return fmt.Errorf("tmpfs-mode=%q: give an octal mode, such as 1777", mode)
			}
			m.Options = append(m.Options, "mode="+mode)
		}
		if m.ReadOnly {
			m.Options = append(m.Options, "ro")
		}
	default:
		return fmt.Errorf("type=%s: use bind, volume or tmpfs", m.Type)
	}
	return nil
}

// ParseMemory parses the value of docker's --tmpfs: TARGET or TARGET:OPTIONS.
func ParseMemory(s string) (m Mount, err error) {
	target, given, _ := strings.Cut(s, ":")
	m = Mount{Type: Memory, Target: target, Options: []string{"nosuid", "nodev", "noexec"}}
	for opt := range strings.SplitSeq(given, ",") {
		switch key, size, _ := strings.Cut(opt, "="); {
		case opt == "":
		case key == "size":
			n, err := parseBytes(size)
			if err != nil {
				return m, invalid("%q: %w", s, err)
			}
			m.Options = append(m.Options, fmt.Sprintf("size=%d", n))
		case opt == "exec" || opt == "suid" || opt == "dev":
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "no"+opt })
		default:
			m.Options = append(m.Options, opt)
		}
	}
	return m.complete(s)
}

// parseBytes parses a number of bytes with a binary unit, such as 64m.
func parseBytes(s string) (int64, error) {
	digits := strings.TrimRightFunc(s, unicode.IsLetter)
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40,
		"kb": 10, "mb": 20, "gb": 30, "tb": 40}[strings.ToLower(s[len(digits):])]
	if err != nil || !ok || n <= 0 || n > 1<<62>>shift {
		return 0, errors.New("give a size, such as 64m")
	}
	return n << shift, nil
}

// complete checks a mount and makes its source absolute.
func (m Mount) complete(s string) (Mount, error) {
	if err := checkTarget(m.Target); err != nil {
		return m, invalid("%q: %w", s, err)
	}
	m.Target = path.Clean(m.Target)
	switch {
	case m.Type == Bind:
		if strings.ContainsRune(m.Source, 0) {
			return m, invalid("%q: the source has a NUL character", s)
		}
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return m, fmt.Errorf("%q: %w", s, err)
		}
		m.Source = abs
	case m.Type == Named && m.Source != "" && !validName.MatchString(m.Source):
		return m, invalid("%q: %w", s, nameError(m.Source))
	}
	return m, nil
}

// checkTarget returns an error for an invalid mount target.
func checkTarget(target string) error {
	clean := path.Clean(target)
	top, _, _ := strings.Cut(strings.TrimPrefix(clean, "/"), "/")
	switch {
	case target == "":
		return errors.New("the target is missing: give an absolute path of the container")
	case strings.ContainsFunc(target, unicode.IsControl):
		return errors.New("the target has a control character")
	case !strings.HasPrefix(target, "/"):
		return fmt.Errorf("target %q: give an absolute path of the container", target)
	case strings.Contains(target+"/", "/../"):
		return fmt.Errorf("target %q: it leads upwards", target)
	case clean == "/":
		return errors.New("the target is the root of the container: give a path below it")
	case top == "proc" || top == "sys" || clean == "/dev":
		return fmt.Errorf("target %q: what the system shows there cannot be covered", target)
	}
	return nil
}

// diskDirs are the subdirectories of a state directory with layers and with the disks of containers and VMs.
var diskDirs = []string{"containers", "run", "store", "vms"}

// Check returns an error for conflicting mounts, sources that do not exist, and sources that contain the state
// directory or are in its directories with disks: a container could change its own disks and the layers of others.
func Check(mounts []Mount, state string) error {
	seen := map[string]Mount{}
	for _, m := range mounts {
		if other, twice := seen[m.Target]; twice {
			return invalid("%s and %s have the same target", other, m)
		}
		seen[m.Target] = m
		if m.Type != Bind {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			return fmt.Errorf("source of the mount at %s: %w", m.Target, err)
		}
		if contains(m.Source, state) {
			return invalid("%s: the folder contains the state directory %s, with the disks of containers: "+
				"give a folder below it", m, state)
		}
		for _, dir := range diskDirs {
			if dir = filepath.Join(state, dir); contains(dir, m.Source) {
				return invalid("%s: it lies in %s, with the disks and layers of containers: give a folder elsewhere", m, dir)
			}
		}
	}
	return nil
}

// contains reports whether a directory is or contains another one, with links resolved.
func contains(folder, other string) bool {
	folder, other = resolved(folder), resolved(other)
	for {
		if hostpath.Identity(folder) == hostpath.Identity(other) {
			return true
		}
		up := filepath.Dir(other)
		if up == other {
			return false
		}
		other = up
	}
}

// resolved returns a path with links resolved, as far as it exists.
func resolved(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	if up := filepath.Dir(p); up != p {
		return filepath.Join(resolved(up), filepath.Base(p))
	}
	return p
}
