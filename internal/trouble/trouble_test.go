package trouble

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"holdfast/internal/memtest"
)

type buffer struct{ memtest.Log }

// lines returns what was logged since the last call.
func (b *buffer) lines() []string {
	text := strings.TrimSpace(b.Take())
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func newLog(over string) (*Log, *buffer) {
	b := new(buffer)
	return &Log{Logger: slog.New(slog.NewTextHandler(b, nil)), What: "it failed", Over: over}, b
}

// expect fails the test unless there is one line for each text, which it contains.
func expect(t *testing.T, when string, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d lines, want %d: %q", when, len(got), len(want), got)
		return
	}
	for i := range got {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%s: %q, want it to say %q", when, got[i], want[i])
		}
	}
}

func TestBeginCountEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLog("it works")
		l.Worked()
		expect(t, "calm", b.lines())
		for n := range 1000 {
			l.Failed("n", n)
		}
		expect(t, "begin", b.lines(), `level=WARN msg="it failed" n=0`)
		time.Sleep(Every)
		synctest.Wait()
		expect(t, "first minute", b.lines(), `level=WARN msg="it failed" times=999 since=2000-01-01T00:00:00.000Z n=999`)
		time.Sleep(10 * Every)
		expect(t, "nothing happens", b.lines())
		l.Failed("n", 7)
		expect(t, "within a minute", b.lines())
		time.Sleep(Every)
		synctest.Wait()
		expect(t, "later", b.lines(), "times=1 ")
		l.Worked()
		expect(t, "over", b.lines(), `level=INFO msg="it works" times=1001 for=12m0s`)
		l.Worked()
		expect(t, "calm again", b.lines())
		time.Sleep(Every)
		l.Failed()
		expect(t, "anew", b.lines(), `level=WARN msg="it failed"`)
		l.Worked()
		expect(t, "over again", b.lines(), `times=1 for=0s`)
	})
}

// What comes and goes must not write two lines each time.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLog("it works")
		flap := func(times int) {
			for range times {
				l.Failed()
				l.Worked()
				time.Sleep(time.Second)
			}
		}
		flap(3600)
		if n := len(b.lines()); n > 62 {
			t.Errorf("%d lines in an hour, want one a minute, and two at the beginning", n)
		}
		// When it stays right, that is said.
		for range 130 {
			l.Worked()
			time.Sleep(time.Second)
		}
		got := b.lines()
		if len(got) == 0 || !strings.Contains(got[len(got)-1], "it works") || len(got) > 2 {
			t.Errorf("at the end: %q", got)
		}
	})
}

func TestConcurrent(t *testing.T) {
	l, b := newLog("it works")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				l.Failed()
				l.Worked()
			}
		})
	}
	all.Wait()
	if n := len(b.lines()); n < 2 || n > 3 {
		t.Errorf("%d lines", n)
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "x", strings.Repeat("x", MaxValue), strings.Repeat("ü", MaxValue/2)} {
		if got := Cut(s); got != s {
			t.Errorf("Cut(%q) = %q", s, got)
		}
	}
	for _, unit := range []string{"x", "ü", "世", "😀", "\xff", "\x80"} {
		for shift := range 4 {
			s := strings.Repeat("a", shift) + strings.Repeat(unit, 10_000)
			got := Cut(s)
			if len(got) > MaxValue+40 || utf8.ValidString(s) != utf8.ValidString(got) || !strings.HasSuffix(got, " bytes more)") {
				t.Errorf("Cut of %d times %q: %q", 10_000, unit, got)
			}
		}
	}
}

// Where nobody can say that it goes right again, a minute without it is the end.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, out := newLog("it is over")
		l.Quiet = true
		for range 10 {
			l.Failed("from", "x")
		}
		expect := func(want ...string) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			lines := out.lines()
			if len(lines) != len(want) {
				t.Fatalf("%q, want lines with %q", lines, want)
			}
			for i := range want {
				if !strings.Contains(lines[i], want[i]) {
					t.Errorf("%q, want %q in it", lines[i], want[i])
				}
			}
		}
		expect("from=x", "times=9 ")
		expect(`msg="it is over" times=10`)
		expect()
	})
}
