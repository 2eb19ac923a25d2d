package strata

import (
	"crypto/sha256"
	"fmt"
	"os"
	"testing"
	"time"
)

// BenchmarkContainers is what "ps" and the look for killed supervisors before each command take of each container,
// with n that have ended: neither should depend on n.
func BenchmarkContainers(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		runs := &Runs{Dir: b.TempDir()}
		cs := runs.Containers()
		for i := range n {
			name := fmt.Sprintf("c%d", i)
			if err := os.MkdirAll(cs.dir(name), 0o700); err != nil {
				b.Fatal(err)
			}
			r := ContainerRecord{Version: containerVersion, Name: name, ID: benchID(i), State: ContainerExited,
				Created: time.Unix(int64(i), 0)}
			if err := writeContainer(cs.dir(name), r); err != nil {
				b.Fatal(err)
			}
		}
		each := func(name string, do func() (int, error)) {
			b.Run(fmt.Sprintf("%s/containers=%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if _, err := do(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/container")
			})
		}
		each("list", func() (int, error) {
			all, err := cs.List()
			if err == nil && len(all) != n {
				err = fmt.Errorf("%d containers", len(all))
			}
			return len(all), err
		})
		each("sweep", func() (int, error) {
			names, err := cs.Sweep(b.Context())
			return len(names), err
		})
		each("find", func() (int, error) { // by the beginning of its id
			_, err := cs.Find(benchID(n - 1)[:20])
			return 0, err
		})
	}
}

func benchID(i int) string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, i))) }
