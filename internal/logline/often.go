package logline

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

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
