package logline

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A Spell logs something that others can make happen as often as they like: that it
// begins, once a minute how often it has happened, and that it is over, when a minute
// has passed without. Its methods may be called by any number of goroutines at once.
type Spell struct {
	log          *slog.Logger
	begins, over string

	mu            sync.Mutex // protects the following fields
	recent, total int        // since the last line, since it began
}

// NewSpell returns a Spell that logs under these messages.
func NewSpell(log *slog.Logger, begins, over string) *Spell {
	return &Spell{log: log, begins: begins, over: over}
}

// Happened notes that it has happened. The args are logged if it begins so.
func (s *Spell) Happened(args ...any) {
	s.mu.Lock()
	s.total++
	begins := s.total == 1
	if !begins {
		s.recent++
	}
	s.mu.Unlock()
	if begins {
		s.log.Warn(s.begins, args...)
		time.AfterFunc(time.Minute, s.minute)
	}
}

// minute runs once a minute from the beginning to the end.
func (s *Spell) minute() {
	s.mu.Lock()
	recent, total := s.recent, s.total
	s.recent = 0
	if recent == 0 {
		s.total = 0
	}
	s.mu.Unlock()
	if recent == 0 {
		s.log.Info(s.over, "total", total)
		return
	}
	s.log.Warn(s.begins, "more", recent, "total", total)
	time.AfterFunc(time.Minute, s.minute)
}

// mostOften is how many records a minute Seldom lets through.
const mostOften = 10

// Seldom returns a handler that passes some records a minute on to h, and of the
// others their number. It is for what net/http logs: which peer can make it log a
// line for each request is not ours to know.
func Seldom(h slog.Handler) slog.Handler { return &seldom{Handler: h, minute: new(minute)} }

type seldom struct {
	slog.Handler
	minute *minute
}

type minute struct {
	mu    sync.Mutex // protects the following field
	count int        // records in the present minute; 0: there is none
}

func (s *seldom) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &seldom{s.Handler.WithAttrs(attrs), s.minute}
}

func (s *seldom) WithGroup(name string) slog.Handler {
	return &seldom{s.Handler.WithGroup(name), s.minute}
}

func (s *seldom) Handle(ctx context.Context, r slog.Record) error {
	m := s.minute
	m.mu.Lock()
	m.count++
	n := m.count
	m.mu.Unlock()
	if n == 1 {
		time.AfterFunc(time.Minute, s.over)
	}
	if n > mostOften {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}

// over ends a minute.
func (s *seldom) over() {
	m := s.minute
	m.mu.Lock()
	n := m.count
	m.count = 0
	m.mu.Unlock()
	if n > mostOften {
		slog.New(s.Handler).Warn("more such lines in the last minute", "lines", n-mostOften)
	}
}
