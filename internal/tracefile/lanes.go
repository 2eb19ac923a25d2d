package tracefile

import (
	"slices"
	"time"
)

// place assigns spans to lanes, because viewers nest the spans of a lane only by time: a span is in its parent's lane
// if it fits there, else in the first lane in which it does.
func place(spans []*kept, now time.Time) [][]*kept {
	ended := func(s *kept) time.Time {
		if s.end.IsZero() {
			return now
		}
		return s.end
	}
	order := slices.Clone(spans)
	slices.SortStableFunc(order, func(a, b *kept) int { // if they start at the same time, the outer one first
		if c := a.start.Compare(b.start); c != 0 {
			return c
		}
		return ended(b).Compare(ended(a))
	})
	var lanes [][]*kept // all spans of each
	var open [][]*kept  // for each lane, the spans that may enclose the next one, innermost last
	for _, s := range order {
		for i := range open {
			for n := len(open[i]); n > 0 && !ended(open[i][n-1]).After(s.start); n = len(open[i]) {
				open[i] = open[i][:n-1]
			}
		}
		s.lane = -1
		if p := s.parent; p != nil && p.lane < len(open) {
			in := open[p.lane]
			if n := len(in); n > 0 && in[n-1] == p && !ended(s).After(ended(p)) {
				s.lane = p.lane
			}
		}
		if s.lane < 0 {
			s.lane = slices.IndexFunc(open, func(in []*kept) bool { return len(in) == 0 })
		}
		if s.lane < 0 {
			s.lane = len(open)
			lanes, open = append(lanes, nil), append(open, nil)
		}
		lanes[s.lane], open[s.lane] = append(lanes[s.lane], s), append(open[s.lane], s)
	}
	return lanes
}
