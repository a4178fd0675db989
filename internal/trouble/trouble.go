// Package trouble logs what goes wrong again and again. It differs from a log line for
// each time in that the log stays short: it says when the trouble begins, once a minute
// how often it has happened, and when it is over.
package trouble

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Every is the least time between two lines that say the same.
const Every = time.Minute

// A Log logs one kind of trouble. Its methods may be called by any number of goroutines
// at once. The fields must not be changed after the first call.
//
// Trouble that comes back within a minute of its end is logged as one that goes on, until
// a whole minute passes without it: else what comes and goes would write two lines each
// time.
type Log struct {
	Logger *slog.Logger
	What   string // the message, such as "upstream failed"
	Over   string // the message when it is over
	Quiet  bool   // a minute without it is its end, since nobody calls Worked

	open atomic.Bool // there is trouble; written with mu locked

	mu     sync.Mutex // protects the following fields
	since  time.Time  // the trouble began
	total  uint64     // times since then
	unsaid uint64     // of these, not yet logged
	flaps  bool       // it had ended less than a minute before
	worked bool       // since the last look, something went right
	last   []any      // the attributes of the latest time
	said   time.Time  // the last line with What
	ended  time.Time  // the last line with Over
	timer  *time.Timer
}

// Failed says that it has happened. The attributes are those of a slog.Logger's
// methods; values from outside should go through Cut.
func (l *Log) Failed(attrs ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	begins := !l.open.Load()
	if begins {
		l.open.Store(true)
		l.since, l.total, l.unsaid, l.worked = now, 0, 0, false
		l.flaps = !l.ended.IsZero() && now.Sub(l.ended) < Every
	}
	l.total++
	if begins && (l.said.IsZero() || now.Sub(l.said) >= Every) {
		l.said = now
		// Under the lock, so that the lines come in the order of what they tell.
		l.Logger.Warn(l.What, attrs...)
	} else {
		l.unsaid++
		l.last = attrs
	}
	if begins {
		l.timer = time.AfterFunc(l.said.Add(Every).Sub(now), l.look)
	}
}

// Worked says that it has gone right. Without trouble that costs one atomic load.
func (l *Log) Worked() {
	if !l.open.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flaps {
		l.worked = true // look ends it, if it stays right
		return
	}
	l.endLocked(time.Now())
}

// look logs the count once a minute, or the end.
func (l *Log) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open.Load() {
		return
	}
	now := time.Now()
	switch {
	case l.unsaid > 0:
		l.Logger.Warn(l.What, append([]any{"times", l.unsaid, "since", l.since}, l.last...)...)
		l.said, l.unsaid, l.worked, l.last = now, 0, false, nil
	case l.worked || l.Quiet:
		l.endLocked(now)
		return
	}
	l.timer.Reset(Every)
}

func (l *Log) endLocked(now time.Time) {
	if !l.open.Load() {
		return // somebody else was faster
	}
	l.open.Store(false)
	l.timer.Stop()
	l.unsaid, l.last, l.ended = 0, nil, now
	l.Logger.Info(l.Over, "times", l.total, "for", now.Sub(l.since).Round(time.Millisecond))
}

// MaxValue is the length in bytes at which Cut cuts a value.
const MaxValue = 200

// Cut returns s, or its beginning and how much is missing if it is longer than
// MaxValue: whoever chooses a value that is logged must not choose the size of the log.
func Cut(s string) string {
	if len(s) <= MaxValue {
		return s
	}
	end := MaxValue
	for end > MaxValue-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s… (%d bytes more)", s[:end], len(s)-end)
}
