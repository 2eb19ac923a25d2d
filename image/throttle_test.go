package image

import (
	"testing"
	"time"
)

// TestThrottle: a stream that is read in small pieces reports now and then, and its end.
func TestThrottle(t *testing.T) {
	const size, piece = 1 << 30, 64 << 10
	for name, tt := range map[string]struct {
		each time.Duration // that a piece takes
		step int64
		most int
	}{
		"fast":                {time.Microsecond, size / 100, 3},
		"slow":                {time.Second, size / 100, size/piece + 1},
		"a percent at a time": {2 * time.Millisecond, size / 100, 110},
		"size is not known":   {time.Millisecond, 0, size/piece/100 + 2},
		"less than a percent": {10 * time.Millisecond, size / 100, size/piece/16 + 2},
	} {
		t.Run(name, func(t *testing.T) {
			var told []int64
			at := time.Unix(1, 0)
			th := &throttle{tell: func(n int64) { told = append(told, n) }, step: tt.step, now: func() time.Time { return at }}
			for n := int64(piece); n <= size; n += piece {
				at = at.Add(tt.each)
				th.at(n, false)
			}
			th.at(size, true)
			if len(told) == 0 || len(told) > tt.most || told[len(told)-1] != size {
				t.Errorf("%d reports, at most %d are due, the last of all bytes", len(told), tt.most)
			}
			for i := range told {
				if i > 0 && told[i] <= told[i-1] {
					t.Fatalf("%d bytes after %d", told[i], told[i-1])
				}
			}
		})
	}
}
