package slirp

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSubnet asks the server of a network who has the address of its gateway, as a guest would.
func TestSubnet(t *testing.T) {
	if _, err := exec.LookPath(Program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; install it with: apt-get install %s", err, Program)
	}
	for _, tt := range []struct {
		subnet  netip.Prefix
		gateway [4]byte
	}{{netip.Prefix{}, [4]byte{10, 0, 2, 2}}, {netip.MustParsePrefix("10.0.3.0/24"), [4]byte{10, 0, 3, 2}}} {
		s, err := Start(t.Context(), Config{Dir: t.TempDir(), Subnet: tt.subnet})
		if err != nil {
			t.Fatal(err)
		}
		us := []byte{2, 0, 0, 0, 0, 1}
		question := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, us...)
		question = append(question, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		question = append(question, us...)
		question = append(question, tt.gateway[0], tt.gateway[1], tt.gateway[2], 100, 0, 0, 0, 0, 0, 0)
		question = append(question, tt.gateway[:]...)
		fd := int(s.Socket.Fd())
		if _, err := unix.Write(fd, question); err != nil {
			t.Fatal(err)
		}
		limit := unix.NsecToTimeval(int64(10 * time.Second))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			t.Fatal(err)
		}
		for {
			b := make([]byte, 2048)
			n, err := unix.Read(fd, b)
			if err != nil || n == 0 {
				t.Errorf("subnet %s: no answer from %v: %v", tt.subnet, tt.gateway, err)
				break
			}
			if n >= 42 && b[12] == 8 && b[13] == 6 && [4]byte(b[28:32]) == tt.gateway {
				break
			}
		}
		s.Socket.Close()
		s.Life.Close()
		if _, err := unix.Wait4(s.PID, nil, 0, nil); err != nil {
			t.Error(err)
		}
	}
}
