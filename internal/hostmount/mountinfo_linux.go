package hostmount

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMountLine bounds a line of mountinfo, in bytes.
const maxMountLine = 16 << 20

// MountLine has fields of a line of mountinfo.
type MountLine struct {
	Dev   uint64 // device number of the file system
	Point string
}

// EachMount calls f for each mount in a mountinfo file, in mount order.
//
// github.com/moby/sys/mountinfo is not used: it fails on a line of 64 KiB, which an overlay of hundreds of layers can
// have, and then returns no mounts at all.
func EachMount(info string, f func(MountLine)) error {
	file, err := os.Open(info)
	if err != nil {
		return err
	}
	defer file.Close() // it was only read
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		f(MountLine{Dev: unix.Mkdev(uint32(a), uint32(b)), Point: unescape(fields[4])})
	}
	return lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
