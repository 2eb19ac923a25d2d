package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/stratavm/strata/vmm"
)

// When a disk cannot be written because the host's file system is full, QEMU pauses the guest and keeps the write.
// Nothing is lost, whereas an error would damage the guest's file system; but QEMU resumes the guest only on request.
// Every process that uses the machine does that: the one that has it open, those that run programs in it, and the next
// one that opens it.

// statusSocket is a second control socket, for queries: the first one is in use by the process that has the machine
// open. Each client connects, queries and disconnects.
const statusSocket = "status.sock"

const (
	// roomToResume is how many bytes must be free before a paused guest is resumed, and before a writable disk is
	// attached.
	roomToResume = 16 << 20
	// fullPoll is the interval between two checks whether a machine is paused.
	fullPoll = time.Second
	// statusTime bounds a query over statusSocket.
	statusTime = 2 * time.Second
)

// fullDisk is a disk whose writes wait for space on the host.
type fullDisk struct {
	path string
	free uint64 // bytes
}

func (f fullDisk) err() error {
	return fmt.Errorf("%w: the VM is paused, its disk %s waits for room (%d MiB are free there); make room and it goes on",
		vmm.ErrHostFull, f.path, f.free>>20)
}

// waitingForRoom reports whether the guest is paused because of a full host file system, and for which disk.
func waitingForRoom(ctx context.Context, q *qmpClient, attached string) (disk fullDisk, paused bool, err error) {
	var state struct {
		Status string `json:"status"`
	}
	if err := q.do(ctx, "query-status", nil, &state); err != nil || state.Status != "io-error" {
		return disk, false, err
	}
	var blocks []struct {
		QDev     string `json:"qdev"`
		IOStatus string `json:"io-status"`
		Inserted *struct {
			Name string `json:"node-name"`
			File string `json:"file"`
		} `json:"inserted"`
	}
	if err := q.do(ctx, "query-block", nil, &blocks); err != nil {
		return disk, false, err
	}
	for _, b := range blocks {
		if b.IOStatus != "nospace" || b.Inserted == nil {
			continue
		}
		path := b.Inserted.File
		if d, ok := recorded(attached, b.QDev, b.Inserted.Name).(vmm.SCSIDisk); ok {
			path = d.Path
		}
		free, err := freeBytes(path)
		if err != nil {
			return disk, true, fmt.Errorf("look for room at %s: %w", path, err)
		}
		if !paused || free < disk.free { // report the disk with the least space
			disk = fullDisk{path, free}
		}
		paused = true
	}
	return disk, paused, nil
}

// resumeIfRoom resumes a guest that is paused because of a full host if there is space again. Otherwise it returns the
// waiting disk.
func resumeIfRoom(ctx context.Context, q *qmpClient, attached string) (waiting *fullDisk, resumed bool, err error) {
	disk, paused, err := waitingForRoom(ctx, q, attached)
	if err != nil || !paused {
		return nil, false, err
	}
	if disk.free < roomToResume {
		return &disk, false, nil
	}
	return nil, true, q.do(ctx, "cont", nil, nil)
}

// askStatus connects to the status socket of the machine in dir, which another process may have open, and calls ask.
func askStatus(ctx context.Context, dir string, ask func(context.Context, *qmpClient) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, statusTime, errors.New("QEMU does not answer"))
	defer cancel()
	conn, err := dialSocket(ctx, dir, statusSocket)
	if err != nil {
		return err
	}
	q, err := newQMPClient(ctx, conn, func(string, json.RawMessage) {})
	if err != nil {
		return err
	}
	defer func() {
		q.close()
		<-q.done
	}()
	return ask(ctx, q)
}

// checkNotWaiting returns an error matching vmm.ErrHostFull when the guest is paused because of a full host: its agent
// would not answer. If there is space again it resumes the guest. A QEMU that cannot be asked is not an error here.
func checkNotWaiting(ctx context.Context, dir string) error {
	var waiting *fullDisk
	_ = askStatus(ctx, dir, func(ctx context.Context, q *qmpClient) (err error) {
		waiting, _, err = resumeIfRoom(ctx, q, filepath.Join(dir, attachedDir))
		return err
	})
	if waiting != nil {
		return waiting.err()
	}
	return nil
}

// roomWatch checks repeatedly whether a machine waits for space on the host, logs it once each time and resumes the
// machine.
type roomWatch struct {
	log      *slog.Logger
	reported bool      // the wait has been logged
	resumed  time.Time // when this watch last resumed it
}

// soonAgain is the time in which a second pause means that the free space cannot be used, as with a quota.
const soonAgain = 10 * time.Second

// look checks once, over q or, if nil, the status socket.
func (w *roomWatch) look(ctx context.Context, q *qmpClient, dir string) {
	var waiting *fullDisk
	var resumed bool
	ask := func(ctx context.Context, q *qmpClient) (err error) {
		waiting, resumed, err = resumeIfRoom(ctx, q, filepath.Join(dir, attachedDir))
		return err
	}
	var err error
	if q != nil {
		err = ask(ctx, q)
	} else {
		err = askStatus(ctx, dir, ask)
	}
	switch {
	case err != nil:
		w.log.Debug("the state of the VM is not known", "error", err)
	case waiting != nil && !w.reported:
		w.reported = true
		w.log.Warn(waiting.err().Error())
	case resumed && time.Since(w.resumed) < soonAgain:
		if !w.reported {
			w.log.Warn("the VM is paused again and again: a disk cannot be written although there is room; is there a quota?")
		}
		w.reported, w.resumed = true, time.Now()
	case resumed:
		w.log.Warn("there is room on the host again: the VM goes on")
		w.reported, w.resumed = false, time.Now()
	case waiting == nil:
		w.reported = false // another process resumed it
	}
}

// watchRoom checks until ctx ends.
func watchRoom(ctx context.Context, q *qmpClient, dir string, log *slog.Logger, wake <-chan struct{}) {
	w := roomWatch{log: log}
	tick := time.NewTicker(fullPoll)
	defer tick.Stop()
	for {
		// With events there is no need to poll, but do not check a resumed machine at once: it may be paused again and
		// again.
		next := tick.C
		if wake != nil && !w.reported && time.Since(w.resumed) > soonAgain {
			next = nil
		}
		select {
		case <-next:
		case <-wake:
			if next != nil {
				continue // the next tick looks
			}
		case <-ctx.Done():
			return
		}
		w.look(ctx, q, dir)
	}
}

// sessionWatch runs watchRoom for a process without a control connection.
type sessionWatch struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func (s *sessionWatch) start(dir string, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.work.Go(func() { watchRoom(ctx, nil, dir, log, nil) })
}

func (s *sessionWatch) stop() {
	if s.cancel != nil {
		s.cancel()
		s.work.Wait()
	}
}

// checkRoom refuses a writable disk on a full file system, before the guest uses it.
func checkRoom(d vmm.SCSIDisk) error {
	if d.ReadOnly || d.Extents != nil {
		return nil
	}
	if fi, err := os.Stat(d.Path); err != nil || !fi.Mode().IsRegular() {
		return nil // a device has its room, and what is not there is reported by who opens it
	}
	free, err := freeBytes(d.Path)
	if err != nil {
		return fmt.Errorf("look for room for %s: %w", d.Path, err)
	}
	if free < roomToResume {
		return fmt.Errorf("%w: %d MiB are free for the writable disk %s, and it needs %d to begin with",
			vmm.ErrHostFull, free>>20, d.Path, roomToResume>>20)
	}
	return nil
}

// pausedBecause returns why the guest of the machine in dir is paused; empty: it is running, or the machine is of an
// earlier version without a status socket.
func pausedBecause(dir string) (reason string) {
	err := askStatus(context.Background(), dir, func(ctx context.Context, q *qmpClient) error {
		disk, paused, err := waitingForRoom(ctx, q, filepath.Join(dir, attachedDir))
		if paused {
			reason = disk.err().Error()
		}
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return "QEMU does not answer"
	}
	return reason
}
