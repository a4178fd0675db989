package logline

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A reader is the other end of a log: it may stand still or fail.
type reader struct {
	hold chan struct{} // a write waits until it is closed

	mu   sync.Mutex
	fail error
	part int // of a write that fails, is written
	got  strings.Builder
}

func (r *reader) Write(p []byte) (int, error) {
	if r.hold != nil {
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		r.got.Write(p[:min(r.part, len(p))])
		return min(r.part, len(p)), r.fail
	}
	r.got.Write(p)
	return len(p), nil
}

func (r *reader) set(fail error, part int) {
	r.mu.Lock()
	r.fail, r.part = fail, part
	r.mu.Unlock()
}

var lostLine = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d WARN lines of this log were lost lines=(\d+)$`)

// check returns the numbers of the lines that have arrived, and how many the log
// says are lost, after it has checked that these explain every gap where it is.
func (r *reader) check(t *testing.T) (arrived []int, lost int) {
	t.Helper()
	next := 0
	for line := range strings.Lines(r.got.String()) {
		line = strings.TrimSuffix(line, "\n")
		if match := lostLine.FindStringSubmatch(line); match != nil {
			n, _ := strconv.Atoi(match[1])
			lost += n
			next += n
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimRight(line, "."), "line "))
		if err != nil || n != next {
			t.Fatalf("%.60q, want line %d", line, next)
		}
		arrived = append(arrived, n)
		next++
	}
	return arrived, lost
}

func line(n, length int) []byte {
	text := fmt.Sprintf("line %d", n)
	return []byte(text + strings.Repeat(".", max(0, length-len(text)-1)) + "\n")
}

// A reader that keeps up gets every line, in order.
func TestWriterPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{}
		w := New(r)
		for i := range 10_000 {
			w.Write(line(i, i%9000*(1-min(i%50, 1)))) // some longer than a batch
			if i%10 == 0 {
				synctest.Wait()
			}
		}
		w.Close(time.Second)
		if arrived, lost := r.check(t); len(arrived) != 10_000 || lost != 0 {
			t.Errorf("%d lines arrived, %d are lost", len(arrived), lost)
		}
	})
}

// A reader that stands still holds up nobody, bounded memory is all it takes, and
// when it goes on it learns how many lines it has missed, and where.
func TestWriterReaderStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{hold: make(chan struct{})}
		w := New(r)
		const all = 50_000
		for i := range all {
			w.Write(line(i, 100)) // durably blocked for ever, it would be a deadlock
			if i == 10 {
				synctest.Wait() // these are on their way
			}
		}
		if n := len(w.lines); n > room {
			t.Errorf("%d bytes wait, want at most %d", n, room)
		}
		close(r.hold)
		synctest.Wait()
		for i := range 10 {
			w.Write(line(all+i, 100))
		}
		w.Close(time.Second)
		arrived, lost := r.check(t)
		if len(arrived)+lost != all+10 || lost == 0 || len(arrived) < room/100 {
			t.Errorf("%d lines arrived and %d are lost, of %d", len(arrived), lost, all+10)
		}
		if last := arrived[len(arrived)-1]; last != all+9 {
			t.Errorf("the last line is %d, want %d", last, all+9)
		}
	})
}

// A write that fails loses its lines alone, and if it has failed half-way, what comes
// next begins a line.
func TestWriterFails(t *testing.T) {
	for _, test := range []struct{ part, arrive, lost int }{
		{0, 20, 10},
		{3, 20, 10},
		{20, 30, 0}, // everything is there in spite of the error
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &reader{}
			w := New(r)
			for i := range 30 {
				switch i {
				case 10:
					r.set(errors.New("no space left"), test.part)
				case 20:
					r.set(nil, 0)
				}
				w.Write(line(i, 20))
				synctest.Wait()
			}
			w.Close(time.Second)
			text := r.got.String()
			if test.part == 3 { // of each batch, which from the second on begins with a newline
				text = strings.Replace(text, "lin"+strings.Repeat("\n20", 9)+"\n", "", 1)
			}
			r.got.Reset()
			r.got.WriteString(text)
			if arrived, lost := r.check(t); len(arrived) != test.arrive || lost != test.lost {
				t.Errorf("%d bytes of a write: %d lines arrived, %d are lost; want %d and %d:\n%s", test.part, len(arrived), lost, test.arrive, test.lost, text)
			}
		})
	}
}

// A writer that fails for good is tried once for each batch, not in a loop.
func TestWriterFailsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		w := New(writerFunc(func(p []byte) (int, error) {
			tries++
			return 0, io.ErrClosedPipe
		}))
		for i := range 100 {
			w.Write(line(i, 20))
			synctest.Wait()
		}
		w.Close(time.Second)
		if tries != 100 {
			t.Errorf("%d tries, want 100", tries)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Close waits for a slow reader, and for one that stands still no longer than it
// is told.
func TestWriterClose(t *testing.T) {
	for _, test := range []struct {
		takes, want time.Duration
		arrives     bool
	}{
		{100 * time.Millisecond, 100 * time.Millisecond, true},
		{time.Hour, time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &reader{hold: make(chan struct{})}
			time.AfterFunc(test.takes, func() { close(r.hold) })
			w := New(r)
			w.Write(line(0, 10))
			began := time.Now()
			w.Close(time.Second)
			if took := time.Since(began); took != test.want {
				t.Errorf("Close took %v, want %v", took, test.want)
			}
			r.mu.Lock()
			arrived := r.got.Len() > 0
			r.mu.Unlock()
			if arrived != test.arrives {
				t.Errorf("the line arrived: %v, want %v", arrived, test.arrives)
			}
			w.Write(line(1, 10)) // by whoever is late; lost
			time.Sleep(2 * time.Hour)
		})
	}
}
