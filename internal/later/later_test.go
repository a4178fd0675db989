package later

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A log has the names of the items in the order in which they went in, with the seconds.
type log struct {
	began time.Time
	lines []string
}

func (l *log) item(name string, urgency int) *Item {
	return &Item{Urgency: urgency, Named: true, Size: 1, Enter: func() {
		l.lines = append(l.lines, fmt.Sprintf("%s %v", name, time.Since(l.began)))
	}}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{began: time.Now()}
		r := New(10, 1<<20)
		gate := make(chan struct{})
		slow := &Item{Enter: func() { <-gate; l.lines = append(l.lines, "slow") }}
		r.Add(slow, l.began.Add(time.Second), false)
		r.Add(l.item("late", 3), l.began.Add(4*time.Second), false)
		r.Add(l.item("early", 3), l.began.Add(2*time.Second), false)
		r.Add(l.item("urgent", 1), l.began.Add(3*time.Second), false)
		r.Add(l.item("same", 3), l.began.Add(2*time.Second), false)
		time.Sleep(5 * time.Second)
		close(gate)
		synctest.Wait()
		if got, want := strings.Join(l.lines, ", "), "slow, urgent 5s, early 5s, same 5s, late 5s"; got != want {
			t.Errorf("they went in as %s, want %s", got, want)
		}
	})
}

func TestOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{began: time.Now()}
		r := New(10_000, 1<<20)
		var want []string
		for i := range 10_000 {
			// Each finds a timer that is set for another one.
			at := time.Duration(i*7919%10_000+1) * time.Second
			r.Add(l.item("", 0), l.began.Add(at), false)
			want = append(want, fmt.Sprintf(" %v", time.Duration(i+1)*time.Second))
		}
		if r.Add(l.item("one more", 0), l.began, false) || r.Len() != 10_000 {
			t.Errorf("a room for 10,000 has %d", r.Len())
		}
		time.Sleep(10_000 * time.Second)
		synctest.Wait()
		if !slices.Equal(l.lines, want) || r.Len() != 0 {
			t.Errorf("they did not go in when their time had come; %d are left", r.Len())
		}
	})
}

func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{began: time.Now()}
		r := New(1, 100)
		first, second, must := l.item("first", 0), l.item("second", 0), l.item("must", 0)
		must.Named, first.Size = false, 101
		if r.Add(first, l.began.Add(time.Second), false) {
			t.Error("an item came in that is larger than the room")
		}
		first.Size = 100
		r.Add(first, l.began.Add(time.Second), false)
		if r.Full() || r.Add(second, l.began, false) {
			t.Error("the room is full for others, or there is room for another one whose time was named")
		}
		if !r.Add(must, l.began.Add(2*time.Second), true) || !r.Full() {
			t.Error("a full room refused what must be let in, or was not full then")
		}
		if !r.Remove(first) || r.Remove(first) {
			t.Error("an item was not removed once")
		}
		if !r.Add(second, l.began.Add(time.Hour), false) {
			t.Error("an item that has left is counted")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := strings.Join(l.lines, ", "); got != "must 2s" || r.Remove(must) {
			t.Errorf("%s went in, want must alone, and not to be there any more", got)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{began: time.Now()}
		r := New(10, 1<<20)
		gate := make(chan struct{})
		r.Add(&Item{Enter: func() { <-gate }}, l.began, false)
		synctest.Wait()
		last, due := l.item("last", 9), l.item("due", 0)
		r.Add(last, l.began.Add(time.Hour), false)
		r.Add(due, l.began, false)
		left := r.Close()
		close(gate)
		time.Sleep(2 * time.Hour)
		if len(left) != 2 || left[0] != due || left[1] != last || len(l.lines) > 0 {
			t.Errorf("%d were left, and %q went in; want the one that was due, and then the last", len(left), l.lines)
		}
		if !r.Closed() || r.Add(due, l.began, true) {
			t.Error("a closed room took something in")
		}
	})
}
