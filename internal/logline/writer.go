// Package logline writes a log of one line a record that never holds up whoever
// logs. It differs from a slog.Handler on a file in that a reader of the log that
// stands still, or has gone, costs lines and nothing else.
package logline

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// room is how many bytes of lines may wait. As many again may be on their way.
	room = 256 << 10

	// batch is how many bytes of whole lines one write has, if a line is not longer.
	// With the lines that say what was lost that is less than PIPE_BUF on Linux, which
	// a pipe takes in one piece or not at all: so a process that ends while its log
	// stands still leaves no half line in it.
	batch = 4<<10 - 256
)

// A Writer passes lines on to another writer, which may block or fail. Its Write
// does neither: a line for which there is no room, or that cannot be written, is
// dropped and counted, and the log says how many when it goes on.
type Writer struct {
	out  io.Writer
	done chan struct{} // closed when everything is written after Close

	mu      sync.Mutex // protects the following fields
	more    sync.Cond  // lines or closed has changed
	lines   []byte     // that wait
	dropped int        // since lines was taken last
	closed  bool
}

// New returns a Writer that writes to out, from a goroutine of its own, until it is
// closed.
func New(out io.Writer) *Writer {
	w := &Writer{out: out, done: make(chan struct{})}
	w.more.L = &w.mu
	go w.run()
	return w
}

// Write takes one line. It does not block and does not fail.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
	case len(w.lines)+len(line) > room:
		w.dropped++
	default:
		w.lines = append(w.lines, line...)
		w.more.Signal()
	}
	return len(line), nil
}

// Close waits until what was written before is passed on, but no longer than d.
// What is written after it is lost.
func (w *Writer) Close(d time.Duration) {
	w.mu.Lock()
	w.closed = true
	w.more.Signal()
	w.mu.Unlock()
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-w.done:
	case <-late.C:
	}
}

// take waits for lines and returns them, or none after Close. In exchange it takes
// memory for those to come.
func (w *Writer) take(spare []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.lines) == 0 && !w.closed {
		w.more.Wait()
	}
	lines := w.lines
	if w.dropped > 0 { // after these lines, and before the next
		lines = append(lines, lost(w.dropped)...)
		w.dropped = 0
	}
	w.lines = spare[:0]
	return lines
}

// run writes lines, some at a time.
func (w *Writer) run() {
	defer close(w.done)
	var failed int // lines lost to errors, not said yet
	var torn bool  // what was written ends within a line
	var lines []byte
	for {
		lines = w.take(lines)
		if len(lines) == 0 {
			return
		}
		for rest := lines; len(rest) > 0; {
			some := rest[:wholeLines(rest)]
			rest = rest[len(some):]
			failed, torn = w.pass(some, failed, torn)
		}
	}
}

// pass writes lines, after the number of those that have failed before. It returns
// how many have failed then, and whether the last that has not is in part there.
func (w *Writer) pass(lines []byte, failed int, torn bool) (int, bool) {
	var head []byte
	if torn {
		head = append(head, '\n')
	}
	if failed > 0 {
		head = append(head, lost(failed)...)
	}
	all := lines
	if len(head) > 0 {
		all = append(head, lines...)
	}
	n, err := w.out.Write(all)
	if err == nil {
		return 0, false
	}
	// The next try comes with the next line: a writer that always fails is not asked
	// in a loop.
	if n > 0 {
		torn = all[n-1] != '\n'
	}
	if n >= len(head) {
		failed, lines = 0, lines[n-len(head):]
	}
	return failed + bytes.Count(lines, []byte{'\n'}), torn
}

// wholeLines returns the length of the lines at the beginning of b that are written
// at once.
func wholeLines(b []byte) int {
	if len(b) <= batch {
		return len(b)
	}
	if end := bytes.LastIndexByte(b[:batch], '\n'); end >= 0 {
		return end + 1
	}
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		return end + 1
	}
	return len(b)
}

// lost returns the line that says how many are not there.
func lost(n int) []byte {
	var line bytes.Buffer
	slog.New(NewHandler(&line)).Warn("lines of this log were lost", "lines", n)
	return line.Bytes()
}
