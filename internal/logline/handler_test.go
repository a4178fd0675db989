package logline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An opError's methods do not expect a nil receiver.
type opError struct{ op string }

func (e *opError) Error() string { return e.op }

type marshaler struct{ err error }

func (m *marshaler) MarshalText() ([]byte, error) { return []byte("text"), m.err }

type valuer struct{ f func() slog.Value }

func (v valuer) LogValue() slog.Value { return v.f() }

func TestHandler(t *testing.T) {
	long := strings.Repeat("é", 10_000)
	for _, test := range []struct {
		name string
		log  func(l *slog.Logger)
		want string
	}{
		{"plain", func(l *slog.Logger) { l.Info("stopped", "finished", 3, "d", time.Second, "path", "/a b", "empty", "") },
			`INFO stopped finished=3 d=1s path="/a b" empty=""`},
		{"no attributes", func(l *slog.Logger) { l.Error("listen tcp :1: in use") }, `ERROR listen tcp :1: in use`},
		{"groups", func(l *slog.Logger) { l.With("a", 1).WithGroup("g").With("b", 2).Warn("m", "c", 3) }, `WARN m a=1 g.b=2 g.c=3`},
		{"keys of a record", func(l *slog.Logger) { l.Info("m", "level", "x", "msg", "y", "time", "z") }, `INFO m level=x msg=y time=z`},
		{"debug", func(l *slog.Logger) { l.Debug("m") }, ""},
		{"error", func(l *slog.Logger) { l.Info("m", "error", errors.New("a\nb")) }, `INFO m error="a\nb"`},
		{"bytes", func(l *slog.Logger) { l.Info("m", "b", []byte("ab")) }, `INFO m b=ab`},
		{"text", func(l *slog.Logger) { l.Info("m", "t", &marshaler{}, "u", &marshaler{io.EOF}) }, `INFO m t=text u="!ERROR: EOF"`},
		{"nil", func(l *slog.Logger) { l.Info("m", "v", nil) }, `INFO m v=<nil>`},

		// A line is one record, whatever a value or a message has in it.
		{"forged value", func(l *slog.Logger) { l.Info("m", "path", "/\n2026/01/01 00:00:00 INFO stopped") }, `INFO m path="/\n2026/01/01 00:00:00 INFO stopped"`},
		{"message of several lines", func(l *slog.Logger) { l.Warn("http: panic serving x: y\ngoroutine 1:\nmain()") }, `WARN http: panic serving x: y stack="goroutine 1:\nmain()"`},
		{"control characters", func(l *slog.Logger) { l.Warn("a\x1b[2Jb\rc") }, `WARN "a\x1b[2Jb\rc"`},
		{"no UTF-8", func(l *slog.Logger) { l.Warn("a\xff") }, `WARN "a\xff"`},

		// What is long is cut between letters, however it comes.
		{"long value", func(l *slog.Logger) { l.Info("m", "v", long) }, `INFO m v="` + long[:MostValue] + `… (20000 bytes)"`},
		{"long error", func(l *slog.Logger) { l.Info("m", "v", errors.New(long)) }, `INFO m v="` + long[:MostValue] + `… (20000 bytes)"`},
		{"long in a group", func(l *slog.Logger) { l.Info("m", slog.Group("g", "v", "x"+long)) }, `INFO m g.v="x` + long[:MostValue-2] + `… (20001 bytes)"`},
		{"long of With", func(l *slog.Logger) { l.With("v", long).Info("m") }, `INFO m v="` + long[:MostValue] + `… (20000 bytes)"`},
		{"long of a LogValuer", func(l *slog.Logger) { l.Info("m", "v", valuer{func() slog.Value { return slog.StringValue(long) }}) }, `INFO m v="` + long[:MostValue] + `… (20000 bytes)"`},
		{"long struct", func(l *slog.Logger) { l.Info("m", "v", struct{ S string }{long}) }, `INFO m v="{S:` + long[:MostValue-4] + `… (20004 bytes)"`},
		{"long message", func(l *slog.Logger) { l.Info(long) }, `INFO ` + long[:MostText] + `… (20000 bytes)`},
		{"long stack", func(l *slog.Logger) { l.Info("m", "stack", long) }, `INFO m stack="` + long[:MostText] + `… (20000 bytes)"`},

		// Nobody recovers where a log line is written.
		{"panic in Error", func(l *slog.Logger) { l.Info("m", "v", error((*opError)(nil))) }, `INFO m v=<nil>`},
		{"panic in MarshalText", func(l *slog.Logger) { l.Info("m", "v", (*marshaler)(nil)) }, `INFO m v="!PANIC: runtime error: invalid memory address or nil pointer dereference"`},
	} {
		var out bytes.Buffer
		test.log(slog.New(NewHandler(&out)))
		want := test.want
		if want == "" {
			if out.Len() > 0 {
				t.Errorf("%s: %q, want nothing", test.name, out.String())
			}
			continue
		}
		stamp, got, _ := strings.Cut(out.String(), " ")
		clock, got, _ := strings.Cut(got, " ")
		if _, err := time.Parse("2006/01/02 15:04:05", stamp+" "+clock); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got != want+"\n" {
			t.Errorf("%s: %.900q, want %.900q", test.name, got, want)
		}
	}
}

// A LogValuer that logs by the same logger must not find it locked.
func TestHandlerNests(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(NewHandler(&out))
	l.Info("outer", "v", valuer{func() slog.Value {
		l.Info("inner")
		return slog.IntValue(1)
	}})
	if text := out.String(); !strings.Contains(text, "INFO inner\n") || !strings.Contains(text, "INFO outer v=1\n") {
		t.Errorf("%q", text)
	}
}

// logged is what a log has in it.
type logged struct {
	mu   sync.Mutex
	text []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, strings.TrimSpace(string(p[len("2006/01/02 15:04:05 "):])))
	return len(p), nil
}

// take returns the lines since the last call, without the time.
func (l *logged) take() string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.text = nil }()
	return strings.Join(l.text, "; ")
}

func TestSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out logged
		h := Seldom(NewHandler(&out))
		flood := func(n int) {
			for range n {
				slog.New(h).Warn("x")
				h.WithGroup("g").Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelWarn, "x", 0))
			}
		}
		for range 3 {
			flood(500)
			if got, want := out.take(), "WARN x"+strings.Repeat("; WARN x", mostOften-1); got != want {
				t.Errorf("%q, want %d lines", got, mostOften)
			}
			time.Sleep(time.Minute)
			if got := out.take(); got != "WARN more such lines in the last minute lines=990" {
				t.Error(got)
			}
		}
		flood(1)
		time.Sleep(time.Hour)
		if got := out.take(); got != "WARN x; WARN x" {
			t.Errorf("%q, want the lines alone, of which none was left out", got)
		}
	})
}
