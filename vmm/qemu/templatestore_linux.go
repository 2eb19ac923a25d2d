package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/lockfile"
	"github.com/stratavm/strata/internal/regfile"
)

// templateVersion is raised when templates of before are of no use any more.
const templateVersion = 1

// maxTemplateMiB bounds the memory of machines that are loaded from templates.
const maxTemplateMiB = 4096

// templateKey names the kind of a machine: all that what is saved of it depends on.
func (c Config) templateKey(program, accel, processor string) (string, error) {
	fi, err := os.Stat(program)
	if err != nil {
		return "", err
	}
	c.ID, c.memory = "template", &guestMemory{share: true}
	b, err := json.Marshal([]any{templateVersion, program, fi.Size(), fi.ModTime().UnixNano(), accel, processor, c.ImageID,
		c.ExecPorts, c.arguments(accel, nil)})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

// templateStore is the folder with the templates, seen from one of them.
type templateStore struct {
	dir    string
	key    string
	memory int64 // of the guest, in bytes
}

// templateHead is how the file of a template begins; the guest's memory and the state follow from templateBase on.
type templateHead struct {
	Version int    `json:"version"`
	Key     string `json:"key"`
	Size    int64  `json:"size"` // of memory and state
	CRC     uint32 `json:"crc"`  // of the pages of both that are not all zeroes
}

const (
	pageSize     = 4096
	templateBase = pageSize
	// maxState bounds what QEMU writes of the devices; it takes half a MiB.
	maxState = 64 << 20
	// maxTemplateData bounds what a template takes on disk; a guest that has just booted uses about 110 MiB.
	maxTemplateData = 1 << 30
)

func (t templateStore) path() string { return filepath.Join(t.dir, t.key+templateSuffix) }

func (t templateStore) usersFile() string { return filepath.Join(t.dir, t.key+usersSuffix) }

func (t templateStore) users() []templateUser {
	var users []templateUser
	b, err := regfile.ReadState(t.usersFile())
	if err != nil || json.Unmarshal(b, &users) != nil {
		return nil // then it is read from its file
	}
	return users
}

// find returns the template, sealed in memory: that of a machine that runs, or one read from its file. An error matches
// os.ErrNotExist when there is none that is good.
func (t templateStore) find(ctx context.Context) (*os.File, error) {
	now := time.Now()
	touched := os.Chtimes(t.path(), now, now) // it is kept for longer
	if f := t.running(); f != nil {
		return f, nil
	}
	if touched != nil {
		return nil, touched
	}
	f, err := t.read(ctx)
	if errors.Is(err, errBadTemplate) {
		if err := t.remove(); err != nil {
			return nil, err
		}
		err = fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	return f, err
}

// errBadTemplate says that a file is none, or not whole.
var errBadTemplate = errors.New("no template of this kind, or damaged")

func (t templateStore) read(ctx context.Context) (_ *os.File, err error) {
	from, size, err := regfile.Open(t.path())
	if err != nil {
		return nil, err
	}
	defer from.Close()
	raw := make([]byte, templateBase)
	if _, err := io.ReadFull(from, raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadTemplate, err)
	}
	var h templateHead
	if err := json.Unmarshal(bytes.TrimRight(raw, "\x00"), &h); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadTemplate, err)
	}
	if h.Version != templateVersion || h.Key != t.key || h.Size <= t.memory || h.Size > t.memory+maxState ||
		size != templateBase+h.Size {
		return nil, fmt.Errorf("%w: it says that it is %+v", errBadTemplate, h)
	}
	whole, err := memoryOf(h.Size)
	if err != nil {
		return nil, err
	}
	crc, err := copyPages(ctx, whole, 0, from, templateBase, h.Size)
	if err == nil && crc != h.CRC {
		err = fmt.Errorf("%w: its checksum is wrong", errBadTemplate)
	}
	if err == nil {
		err = seal(whole)
	}
	if err != nil {
		return nil, errors.Join(err, whole.Close())
	}
	return whole, nil
}

// write keeps a template, which nobody changes meanwhile.
func (t templateStore) write(ctx context.Context, whole *os.File) error {
	fi, err := whole.Stat()
	if err != nil {
		return err
	}
	if fi.Size() <= t.memory || fi.Size() > t.memory+maxState {
		return fmt.Errorf("the state takes %d bytes", fi.Size()-t.memory)
	}
	if n := onDisk(fi); n > maxTemplateData {
		return fmt.Errorf("the guest uses %d MiB: a template has %d at most", n>>20, maxTemplateData>>20)
	}
	f, err := atomicfile.Create(t.path(), atomicfile.Options{})
	if err != nil {
		return err
	}
	h := templateHead{Version: templateVersion, Key: t.key, Size: fi.Size()}
	if h.CRC, err = copyPages(ctx, f, templateBase, whole, 0, h.Size); err == nil {
		err = f.Truncate(templateBase + h.Size)
	}
	var head []byte
	if err == nil {
		head, err = json.Marshal(h)
	}
	if err == nil {
		_, err = f.WriteAt(head, 0)
	}
	if err != nil {
		return errors.Join(err, f.Abandon())
	}
	return f.Commit()
}

// copyPages copies size bytes, leaving out what is all zeroes, to where there is nothing yet. It returns a checksum of
// the pages and where they are.
func copyPages(ctx context.Context, to io.WriterAt, toAt int64, from *os.File, fromAt, size int64) (uint32, error) {
	table := crc32.MakeTable(crc32.Castagnoli)
	zero := make([]byte, pageSize)
	buf := make([]byte, 1<<20)
	var crc uint32
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		data, err := unix.Seek(int(from.Fd()), fromAt+at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but zeroes
		}
		if err != nil {
			return 0, fmt.Errorf("look for data in %s: %w", from.Name(), err)
		}
		at = max(at, (data-fromAt)&^(pageSize-1))
		if at >= size {
			break
		}
		b := buf[:min(int64(len(buf)), size-at)]
		if _, err := from.ReadAt(b, fromAt+at); err != nil {
			return 0, err
		}
		run := 0 // where the pages begin that are not written yet
		for i := 0; i < len(b); i += pageSize {
			page := b[i:min(i+pageSize, len(b))]
			if bytes.Equal(page, zero[:len(page)]) {
				if err := writeRun(to, b[run:i], toAt+at+int64(run)); err != nil {
					return 0, err
				}
				run = i + len(page)
				continue
			}
			var where [8]byte
			binary.LittleEndian.PutUint64(where[:], uint64(at)+uint64(i))
			crc = crc32.Update(crc32.Update(crc, table, where[:]), table, page)
		}
		if err := writeRun(to, b[run:], toAt+at+int64(run)); err != nil {
			return 0, err
		}
		at += int64(len(b))
	}
	return crc, nil
}

func writeRun(to io.WriterAt, b []byte, at int64) error {
	if len(b) == 0 {
		return nil
	}
	_, err := to.WriteAt(b, at)
	return err
}

// remove takes the template away. Machines that map it go on.
func (t templateStore) remove() error {
	var errs []error
	for _, path := range []string{t.path(), t.usersFile()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweep makes place for one more template. The lock is held.
func (t templateStore) sweep(ctx context.Context) error {
	_, err := sweepTemplates(ctx, t.dir, false, func(newer int, _ TemplateInfo) bool { return newer >= maxTemplates-1 })
	return err
}

// sweepTemplates removes what processes left that were killed, and the templates that are doomed, of which newer ones
// were used later. It returns these, or what would go. The lock of making is held.
func sweepTemplates(ctx context.Context, dir string, dryRun bool,
	doomed func(newer int, i TemplateInfo) bool) (gone []TemplateInfo, err error) {
	lock, err := lockfile.Wait(ctx, filepath.Join(dir, usersLock), false) // they are written as others are
	if err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	defer lock.Close()
	all, err := listTemplates(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	known := map[string]bool{}
	for newer, i := range all {
		if known[i.Key] = !doomed(newer, i); known[i.Key] {
			continue
		}
		if !dryRun {
			if err := (templateStore{dir: dir, key: i.Key}).remove(); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		gone = append(gone, i)
	}
	if dryRun {
		return gone, nil
	}
	errs = append(errs, atomicfile.Sweep(dir), endMaking(ctx, dir))
	users, err := filepath.Glob(filepath.Join(dir, "*"+usersSuffix))
	errs = append(errs, err)
	for _, path := range users {
		key := strings.TrimSuffix(filepath.Base(path), usersSuffix)
		// Where a machine runs its template is found in that, whether there is a file or not.
		if t := (templateStore{dir: dir, key: key}); !known[key] && t.inUse() == 0 {
			errs = append(errs, t.remove())
		}
	}
	return gone, errors.Join(errs...)
}

// inUse is how many machines run that share the template's memory. Those with memory of their own are not noted.
func (t templateStore) inUse() (n int) {
	for _, u := range t.users() {
		if u.runs() {
			n++
		}
	}
	return n
}

// listTemplates lists what is there, those that were used last first.
func listTemplates(dir string) (all []TemplateInfo, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("templates: %w", err)
	}
	for _, e := range entries {
		key, is := strings.CutSuffix(e.Name(), templateSuffix)
		if fi, err := e.Info(); is && err == nil { // else it has just gone
			all = append(all, TemplateInfo{Key: key, Bytes: onDisk(fi), Used: fi.ModTime(),
				VMs: templateStore{dir: dir, key: key}.inUse()})
		}
	}
	slices.SortFunc(all, func(a, b TemplateInfo) int { return b.Used.Compare(a.Used) })
	return all, nil
}

// onDisk is what a file takes there, in bytes.
func onDisk(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// lockMaking takes the lock of making. While another process has it the error matches ErrTemplateBusy.
func lockMaking(dir string) (*os.File, error) {
	lock, err := lockfile.Try(filepath.Join(dir, makingLock), false, os.O_CREATE)
	switch {
	case err != nil:
		return nil, fmt.Errorf("templates: %w", err)
	case lock == nil:
		return nil, ErrTemplateBusy
	}
	return lock, nil
}

// Templates lists the templates in a cache directory of vmm.StartOptions, those that were used last first.
func Templates(cacheDir string) ([]TemplateInfo, error) {
	return listTemplates(filepath.Join(cacheDir, templatesDir))
}

// RemoveTemplates removes the templates in a cache directory that were not used since the time given and whose memory
// no machine shares, and what processes left there that were killed. It returns what it removed or, with dryRun, would
// remove. While another process makes a template the error matches ErrTemplateBusy.
func RemoveTemplates(ctx context.Context, cacheDir string, since time.Time, dryRun bool) ([]TemplateInfo, error) {
	dir := filepath.Join(cacheDir, templatesDir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockMaking(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return sweepTemplates(ctx, dir, dryRun, func(_ int, i TemplateInfo) bool { return i.VMs == 0 && i.Used.Before(since) })
}
