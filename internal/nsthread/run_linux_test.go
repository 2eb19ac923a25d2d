package nsthread

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
)

func namespaceOf(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	return to
}

// elsewhere are the threads of this process that are in another network namespace than own.
func elsewhere(t *testing.T, own string) (threads []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if to := namespaceOf(t, path); to != "" && to != own {
			threads = append(threads, path)
		}
	}
	return threads
}

func TestRun(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	own := namespaceOf(t, "/proc/self/ns/net")
	var file *os.File
	fault := errors.New("fault")
	err := RunNew(func() (err error) {
		if namespaceOf(t, "/proc/thread-self/ns/net") == own {
			t.Error("it is not in a new namespace")
		}
		file, err = os.Open("/proc/thread-self/ns/net")
		return errors.Join(err, fault)
	})
	if !errors.Is(err, fault) {
		t.Errorf("%v, want %v", err, fault)
	}
	defer file.Close()
	h, err := Handle(file)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if links, err := h.LinkList(); err != nil || len(links) == 0 || links[0].Attrs().Name != "lo" {
		t.Errorf("links %v, %v", links, err)
	}
	if left := elsewhere(t, own); len(left) > 0 {
		t.Errorf("threads stay in the namespace: %v", left)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := Run(null, func() error { t.Error("it ran"); return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no namespace: %v", err)
	}
}

// TestNoWayBack takes the right to change namespaces from the thread, as if the original network namespace belonged
// to another user namespace: the call succeeds, and the thread is not used again. It is never the main thread, which
// would not end.
func TestNoWayBack(t *testing.T) {
	treetest.NeedRoot(t, "to make network namespaces")
	own := namespaceOf(t, "/proc/self/ns/net")
	for range 20 {
		err := RunNew(func() error {
			if unix.Gettid() == os.Getpid() {
				t.Error("it runs on the first thread")
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			return unix.Capset(&header, &none[0])
		})
		if err != nil {
			t.Error(err)
		}
	}
	for until := time.Now().Add(30 * time.Second); len(elsewhere(t, own)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("threads stay in the namespace: %v", elsewhere(t, own))
		}
	}
}
