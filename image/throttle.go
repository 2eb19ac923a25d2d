package image

import "time"

// tellEvery is the minimum time between two progress reports.
const tellEvery = 100 * time.Millisecond

// throttle limits progress reports to ten per second, and to one per second while less than a percent is added. The
// last one is always reported.
type throttle struct {
	tell func(int64)
	step int64 // bytes of one percent; 0: unknown
	now  func() time.Time

	told  int64
	since time.Time
}

func (t *throttle) at(n int64, last bool) {
	if last && n == t.told && n > 0 {
		return
	}
	now := t.now()
	if !last && now.Sub(t.since) < tellEvery {
		return
	}
	if !last && t.step > 0 && n-t.told < t.step && now.Sub(t.since) < 10*tellEvery {
		return
	}
	t.told, t.since = n, now
	t.tell(n)
}
