package image

import "time"

// tellEvery is how often progress is reported where it does not get on by a percent.
const tellEvery = 100 * time.Millisecond

// throttle passes on how far a stream has come: at most once for each percent or, where that comes first, ten times
// a second, and at the end.
type throttle struct {
	tell func(int64)
	step int64 // bytes that are a percent; 0: not known
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
