package images

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
)

// writer commits numbered rows, and prints the number of each that is committed, once it is.
const writer = `
last=$(sqlite3 /data/db 'pragma journal_mode=wal; create table if not exists t (n integer primary key, x blob);
	select coalesce(max(n), 0) from t' | tail -n 1)
i=$((last + 1))
echo "begin $i"
while :; do
	echo "insert into t values ($i, randomblob(2000)); select 'row $i';"
	i=$((i + 1))
done | stdbuf -oL sqlite3 -bail -cmd 'pragma synchronous=full' /data/db`

// acknowledged is the number of the last row that a log says is committed.
func acknowledged(log string) (last int) {
	for line := range strings.Lines(log) {
		number, ok := strings.CutPrefix(line, "row ")
		if n, err := strconv.Atoi(strings.TrimSuffix(number, "\n")); ok && err == nil {
			last = max(last, n)
		}
	}
	return last
}

// TestDatabase: what a database on a volume has acknowledged is there after its container was killed in the middle of
// a write, with its supervisor and its VM, several times.
func TestDatabase(t *testing.T) {
	both(t, func(t *testing.T, b box, flags []string) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0))
		b.run("volume", "create", "data")
		b.start(flags, "--name", "db", "-v", "data:/data", debian, "sh", "-c", writer)
		before := 0
		for round := range 3 {
			b.eventually("rows are committed", func() bool {
				return acknowledged(b.run("logs", "--tail", "20", "db")) > before+20
			})
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond) // where it hits does not matter
			supervisor := b.inspect("db").Supervisor
			vms := servants(supervisor)["strata-db"]
			if (len(vms) > 0) != (flags == nil) {
				t.Fatalf("the VMs of the container are %v", vms)
			}
			if len(vms) > 0 && round%2 == 0 { // the VM first, the supervisor sees it die
				b.kill(vms[0])
			}
			b.kill(supervisor)
			b.run("recover")
			if r := b.inspect("db"); r.State != "exited" || r.Error == "" {
				t.Errorf("round %d: a container that was killed: %+v", round, r)
			}
			for _, pid := range vms {
				if !leaktest.Ended(pid) {
					t.Errorf("round %d: the VM (process %d) lives", round, pid)
				}
			}
			before = acknowledged(b.run("logs", "--tail", "20", "db"))
			if round < 2 {
				b.run("start", "db")
			}
		}
		// Another container looks at what is there.
		args := append(append([]string{"run"}, flags...), "-v", "data:/data", debian, "sqlite3", "/data/db",
			"pragma integrity_check; select count(*), max(n) from t")
		got := b.run(args...)
		var count, last int
		if _, err := fmt.Sscanf(got, "ok\n%d|%d", &count, &last); err != nil || count != last || last < before {
			t.Errorf("%d rows are acknowledged, the database says %q", before, got)
		}
		t.Logf("%d rows acknowledged, %d there", before, last)
		b.run("rm", "db")
		b.run("volume", "rm", "data")
	})
}
