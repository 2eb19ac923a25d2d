package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/plaintext"
)

// progress shows the progress of an operation: a bar on a terminal, a periodic line elsewhere. Its methods may be
// called concurrently.
type progress struct {
	w        io.Writer
	name     string
	total    int64 // bytes; 0: unknown
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	start time.Time
	last  time.Time
	shown bool
	done  int64
}

// How often progress is shown.
const (
	redrawEvery = 100 * time.Millisecond
	lineEvery   = 5 * time.Second
)

func newProgress(w io.Writer, name string, total int64, quiet bool) *progress {
	if quiet {
		w = io.Discard
	}
	_, tty := terminal(w)
	p := &progress{w: w, name: printable(name), total: total, terminal: tty, now: time.Now}
	p.start = p.now()
	p.last = p.start
	return p
}

// set sets the number of bytes that are done.
func (p *progress) set(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = n
	every := lineEvery
	if p.terminal {
		every = redrawEvery
	}
	if now := p.now(); now.Sub(p.last) >= every {
		p.last = now
		p.draw()
	}
}

func (p *progress) draw() {
	text := fmt.Sprintf("%s %s%s", p.name, size(p.done), p.rate())
	if p.total > 0 {
		text = fmt.Sprintf("%s %3d%% of %s%s", p.name, min(100, p.done*100/p.total), size(p.total), p.rate())
	}
	if !p.terminal {
		fmt.Fprintln(p.w, text)
		return
	}
	if p.total > 0 {
		const width = 24
		n := int(min(p.done, p.total) * width / p.total)
		text = fmt.Sprintf("[%s%s] %s", strings.Repeat("#", n), strings.Repeat(".", width-n), text)
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", text)
	p.shown = true
}

func (p *progress) rate() string {
	if s := p.now().Sub(p.start).Seconds(); s > 0.5 {
		return ", " + size(int64(float64(p.done)/s)) + "/s"
	}
	return ""
}

// finish removes the bar.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// size formats a number of bytes with a binary unit.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, suffix := float64(n)/unit, "KMGTPE"
	for f >= unit && len(suffix) > 1 {
		f, suffix = f/unit, suffix[1:]
	}
	return fmt.Sprintf("%.1f %ciB", f, suffix[0])
}

// printable returns untrusted text on one line without control characters.
func printable(s string) string { return plaintext.Line(s) }
