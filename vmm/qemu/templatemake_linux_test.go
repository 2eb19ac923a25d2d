package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/lockfile"
)

// TestMakeTemplate: where the caller has the template made, the first machine of a kind is not saved; a machine of its
// own is, once, whoever else is at it, at the lowest priority, and nothing of it is left.
func TestMakeTemplate(t *testing.T) {
	h := newTemplated(t)
	missing := 0
	h.c.TemplateMissing = func() { missing++ }
	dir := filepath.Join(h.c.CacheDir, templatesDir)
	first := h.start(true, 1, 0)
	if all, err := Templates(h.c.CacheDir); err != nil || len(all) != 0 || missing != 1 || first.desc.Saved {
		t.Errorf("the first machine: the templates are %v (%v), %d were missing, saved is %v", all, err, missing,
			first.desc.Saved)
	}
	lock, err := lockfile.Try(filepath.Join(dir, makingLock), false, os.O_CREATE)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if made, err := MakeTemplate(t.Context(), h.c); made || !errors.Is(err, ErrTemplateBusy) {
		t.Errorf("while another one makes one: %v, %v", made, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	nice := -1
	connect := h.c.connect
	h.c.connect = func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
		if p, err := findProcess(filepath.Join(dir, makingDir)); err == nil {
			nice, _ = unix.Getpriority(unix.PRIO_PROCESS, p.pid) // 20 less it
			p.close()
		}
		return connect(ctx, conn, log)
	}
	c := h.c
	c.Namespace = "/none" // it does not matter
	var both sync.WaitGroup
	made, errs := make([]bool, 2), make([]error, 2)
	for i := range made {
		both.Go(func() { made[i], errs[i] = MakeTemplate(t.Context(), c) })
	}
	both.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrTemplateBusy) {
			t.Error(err)
		}
	}
	if made[0] == made[1] || h.booted != 2 || nice != 1 {
		t.Errorf("two at once have made %v (%v), %d machines have booted, priority %d", made, errs, h.booted, nice)
	}
	if made, err := MakeTemplate(t.Context(), h.c); made || err != nil {
		t.Errorf("where there is one: %v, %v", made, err)
	}
	if _, err := os.Stat(filepath.Join(dir, makingDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine's state directory is left (%v)", err)
	}
	second := h.start(true, 2, 1)
	if second.desc.Template == "" || missing != 1 {
		t.Errorf("the second one is of the template %q, %d were missing", second.desc.Template, missing)
	}
	if a, b := facts(t, first), facts(t, second); a["boot"] == b["boot"] || b["boot"] == "" {
		t.Errorf("boot ids: %v and %v", a, b)
	}
}

// TestMakeTemplateNoRoom: no machine boots for a template that there is no room for.
func TestMakeTemplateNoRoom(t *testing.T) {
	h := newTemplated(t)
	h.c.CacheDir = newSmallHost(t, 1).dir
	if made, err := MakeTemplate(t.Context(), h.c); made || !errors.Is(err, unix.ENOSPC) || h.booted != 0 {
		t.Errorf("%v, %v, and %d machines have booted", made, err, h.booted)
	}
}

// TestMakeTemplateCancelled: whoever gives up has nothing left.
func TestMakeTemplateCancelled(t *testing.T) {
	h := newTemplated(t)
	ctx, cancel := context.WithCancel(t.Context())
	connect := h.c.connect
	h.c.connect = func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
		cancel()
		return connect(ctx, conn, log)
	}
	if made, err := MakeTemplate(ctx, h.c); made || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", made, err)
	}
	entries, err := os.ReadDir(filepath.Join(h.c.CacheDir, templatesDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != makingLock && e.Name() != usersLock {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// killedEnv has the test binary start a machine that is saved.
const killedEnv = "STRATA_TEST_SAVING"

// TestKilledSaving kills a process while it writes the template of the machine that it has just booted, which stands
// still then. Whoever opens it has it go on; what is torn goes with the next template.
func TestKilledSaving(t *testing.T) {
	if text := os.Getenv(killedEnv); text != "" {
		c := Config{Template: true}
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		_, err := Start(t.Context(), c)
		t.Fatal(err) // it should be dead by now
	}
	img := image(t)
	for turn := 1; ; turn++ { // until it is killed in time
		c := Config{Dir: filepath.Join(t.TempDir(), "vm"), Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline,
			ImageID: img.ID, CacheDir: t.TempDir(), NoShares: true}
		killSaving(t, c)
		m, err := Open(t.Context(), c.Dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end(t, m) })
		if facts(t, m)["boot"] == "" {
			t.Error("the machine does nothing")
		}
		if all, err := Templates(c.CacheDir); err != nil || len(all) > 0 && turn < 5 {
			continue
		}
		if torn, err := filepath.Glob(filepath.Join(c.CacheDir, templatesDir, ".new-*")); err != nil || len(torn) != 1 {
			t.Errorf("torn is %v (%v)", torn, err)
		}
		if _, err := RemoveTemplates(t.Context(), c.CacheDir, time.Time{}, false); err != nil {
			t.Error(err)
		}
		if torn, err := filepath.Glob(filepath.Join(c.CacheDir, templatesDir, ".new-*")); err != nil || len(torn) != 0 {
			t.Errorf("torn is still %v (%v)", torn, err)
		}
		return
	}
}

// killSaving kills a process that starts a machine once it writes the template.
func killSaving(t *testing.T, c Config) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"Dir": c.Dir, "Kernel": c.Kernel, "Initrd": c.Initrd, "Cmdline": c.Cmdline,
		"ImageID": c.ImageID, "CacheDir": c.CacheDir, "NoShares": c.NoShares})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledSaving$")
	cmd.Env = append(os.Environ(), killedEnv+"="+string(text))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "a template is written", func() bool {
		have, err := filepath.Glob(filepath.Join(c.CacheDir, templatesDir, ".new-*"))
		return err != nil || len(have) > 0
	})
	_ = cmd.Process.Kill() // it runs, or has just ended
	_ = cmd.Wait()
}
