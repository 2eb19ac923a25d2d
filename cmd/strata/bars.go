package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/store"
)

// bars shows the progress of an import: on a terminal a bar for each layer being converted, elsewhere a periodic line
// for all of them, and one at the end. Its methods may be called concurrently.
type bars struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu       sync.Mutex
	active   []store.Event // in the order in which they began
	last     time.Time
	drawn    int   // lines on the terminal
	over     int   // layers that are finished, including those already in the store
	made     int   // layers that were converted
	bytes    int64 // of the converted layers
	finished bool
	note     string                           // why nothing moves, shown below the bars
	notice   func(format string, args ...any) // says what is waited for where no bars are shown; nil: nobody is told
}

func newBars(w io.Writer, quiet bool) *bars {
	if quiet {
		w = io.Discard
	}
	_, tty := terminal(w)
	return &bars{w: w, terminal: tty, now: time.Now, last: time.Now()}
}

// bars are those of a command. With --json none are shown, but why nothing moves is a notice.
func (e *env) bars(cmd *cli.Command) *bars {
	quiet := cmd.Bool("json")
	b := newBars(e.stderr, quiet)
	if quiet {
		b.notice = e.say
	}
	return b
}

// tell handles an event of the store.
func (b *bars) tell(ev store.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note = ""
	i := slices.IndexFunc(b.active, func(a store.Event) bool { return a.Layer == ev.Layer })
	if ev.State == store.Reading {
		if i < 0 {
			b.active = append(b.active, ev)
		} else {
			b.active[i] = ev
		}
		every := lineEvery
		if b.terminal {
			every = redrawEvery
		}
		if now := b.now(); now.Sub(b.last) >= every {
			b.last = now
			b.draw()
		}
		return
	}
	if i >= 0 {
		b.active = slices.Delete(b.active, i, i+1)
	}
	b.over++
	if ev.State == store.Done {
		b.made++
		b.bytes += max(0, ev.Size)
	}
	if !b.terminal {
		return
	}
	b.erase()
	if ev.State == store.Done { // no line for a layer that was in the store already
		fmt.Fprintf(b.w, "%s done%s\n", label(ev), of(ev))
	}
	b.draw()
}

func label(ev store.Event) string {
	id := ev.Digest
	if id == "" {
		id = ev.DiffID
	}
	return fmt.Sprintf("layer %d/%d %.12s", ev.Layer+1, ev.Count, strings.TrimPrefix(id, "sha256:"))
}

func of(ev store.Event) string {
	if ev.Size < 0 {
		return ""
	}
	return " " + size(ev.Size)
}

func (b *bars) draw() {
	if !b.terminal {
		b.line()
		return
	}
	b.erase()
	for _, ev := range b.active {
		text := fmt.Sprintf("%s %s", label(ev), size(ev.Done))
		if ev.Size > 0 {
			text = fmt.Sprintf("%s %3d%% of %s", label(ev), min(100, ev.Done*100/ev.Size), size(ev.Size))
			const width = 24
			n := int(min(ev.Done, ev.Size) * width / ev.Size)
			text = fmt.Sprintf("[%s%s] %s", strings.Repeat("#", n), strings.Repeat(".", width-n), text)
		}
		fmt.Fprintln(b.w, text)
	}
	b.drawn = len(b.active)
	if b.note != "" {
		fmt.Fprintln(b.w, b.note)
		b.drawn++
	}
}

// line writes the total progress of all layers.
func (b *bars) line() {
	done := b.bytes
	for _, ev := range b.active {
		done += ev.Done
	}
	fmt.Fprintf(b.w, "%d of %s done, %s read\n", b.over, count(b.active[0].Count, "layer"), size(done))
}

// retry shows why a download is being retried; on a terminal, below the bars until it continues.
func (b *bars) retry(r image.Retry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := printable(fmt.Sprintf("registry %s, %s: %v; attempt %d of %d in %s", r.Registry, r.Step, r.Err, r.Attempt,
		r.Attempts, r.Pause.Round(100*time.Millisecond)))
	switch {
	case b.notice != nil:
		b.notice("%s", text)
	case b.terminal:
		b.note = text
		b.draw()
	default:
		fmt.Fprintln(b.w, text)
	}
}

// erase removes the bars from the terminal.
func (b *bars) erase() {
	for ; b.drawn > 0; b.drawn-- {
		fmt.Fprint(b.w, "\x1b[A\r\x1b[K")
	}
}

// finish removes the bars from a terminal; elsewhere it writes how many layers were converted. It is idempotent.
func (b *bars) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.erase()
	if !b.terminal && b.made > 0 && !b.finished {
		fmt.Fprintf(b.w, "%s converted, %s\n", count(b.made, "layer"), size(b.bytes))
	}
	b.finished = true
	b.active, b.note = nil, ""
}

// converted returns the number of layers that were converted.
func (b *bars) converted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.made
}
