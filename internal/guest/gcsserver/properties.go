package gcsserver

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/stratavm/strata/internal/gcs"
)

// properties returns the properties of the VM or a container that the request names.
func (s *session) properties(ctx context.Context, container string, payload []byte) (base, error) {
	var r gcs.PropertiesRequest
	if err := Decode(payload, &r); err != nil {
		return nil, err
	}
	var q gcs.PropertyQuery
	if err := Decode([]byte(r.Query), &q); err != nil {
		return nil, err
	}
	var p gcs.Properties
	for _, name := range q.PropertyTypes {
		switch {
		case name == gcs.PropertyMounts && container == "":
			mounts, err := s.rt.Mounts(ctx)
			if err != nil {
				return nil, err
			}
			p.StrataMounts, p.StrataNext = page(mounts, q.StrataOffset)
		case name == gcs.PropertyProcesses:
			pids, err := s.rt.Processes(container)
			if err != nil {
				return nil, err
			}
			for _, pid := range pids {
				p.ProcessList = append(p.ProcessList, gcs.ProcessDetails{ProcessId: pid})
			}
		case name == gcs.PropertyStats && container != "":
			stats, err := s.rt.Stats(container)
			if err != nil {
				return nil, err
			}
			p.StrataStatistics = &stats
		default:
			return nil, fmt.Errorf("property %s: %w", strconv.Quote(name), ErrUnsupported)
		}
	}
	text, err := gcs.EncodeText(p)
	return &gcs.PropertiesResponse{Properties: text}, err
}

// pageBytes is the approximate size of one page of a list. It leaves room for escaping JSON inside a JSON string.
const pageBytes = 24 << 10

func page(all []gcs.Mount, offset int) (mounts []gcs.Mount, next int) {
	slices.SortFunc(all, func(a, b gcs.Mount) int { return strings.Compare(a.Path, b.Path) })
	size := 0
	for i := max(0, offset); i < len(all); i++ {
		b, err := json.Marshal(all[i])
		if err != nil {
			continue
		}
		if size += len(b); size > pageBytes && len(mounts) > 0 {
			return mounts, i
		}
		mounts = append(mounts, all[i])
	}
	return mounts, 0
}

func stacks() string {
	buf := make([]byte, 48<<10)
	return string(buf[:runtime.Stack(buf, true)])
}
