package guest

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// modules loads kernel modules from a flat directory.
type modules struct {
	dir string
	log *slog.Logger

	known  chan struct{}       // closed when lazy is complete
	lazy   map[string][]string // files to load, by feature
	mu     sync.Mutex          // held while modules are loaded
	loaded map[string]bool
	once   sync.Once // of background
}

func newModules(dir string, log *slog.Logger) *modules {
	return &modules{dir: dir, log: log, known: make(chan struct{}), lazy: map[string][]string{}, loaded: map[string]bool{}}
}

// early loads the modules of a list file, one per line, in order.
func (m *modules) early(list string) {
	b, err := os.ReadFile(list)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.log.Error("read the list of modules", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range strings.FieldsSeq(string(b)) {
		m.insert(name)
	}
}

// readLazy reads a list of the modules to load on demand, with lines "feature: file file ...".
func (m *modules) readLazy(list string) {
	defer close(m.known)
	f, err := os.Open(list)
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if feature, files, ok := strings.Cut(lines.Text(), ":"); ok {
			m.lazy[strings.TrimSpace(feature)] = strings.Fields(files)
		}
	}
}

// needs are the features that a feature depends on without its modules declaring so.
var needs = map[string][]string{"ext4": {"crc32c"}, "erofs": {"crc32c"}, "virtio_pmem": {"nd_pmem"}}

// load loads the modules of a feature, once. A feature that is not listed is built in or missing; in that case the
// mount fails.
func (m *modules) load(feature string) {
	<-m.known
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loadLocked(feature)
}

func (m *modules) loadLocked(feature string) {
	for _, n := range needs[feature] {
		m.loadLocked(n)
	}
	files := m.lazy[feature]
	delete(m.lazy, feature)
	for _, f := range files {
		m.insert(f)
	}
}

// background loads the modules that a host will need first, once. It returns when they are loaded.
func (m *modules) background() {
	m.once.Do(func() {
		for _, f := range []string{"virtio_scsi", "sd_mod", "ext4", "overlay", "virtio_pmem", "erofs"} {
			m.load(f)
		}
	})
}

func (m *modules) insert(file string) {
	if m.loaded[file] {
		return
	}
	m.loaded[file] = true
	f, err := os.Open(filepath.Join(m.dir, filepath.Base(file)))
	if err != nil {
		m.log.Error("kernel module", "file", file, "err", err)
		return
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		m.log.Warn("kernel module", "file", file, "err", err)
	}
}
