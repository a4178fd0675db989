package store

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Listed is a job in a list.
type Listed struct {
	ID ID
	View
}

// A Cursor is a place in the list of jobs. The zero Cursor is its beginning. A
// Cursor of another store is a place too, though any.
type Cursor struct {
	accepted time.Duration // of the job before it, if that has not ended
	id       ID            // of the same

	ended bool  // it is among the jobs that have ended,
	at    place // and the one that lies here is before it
}

// String returns the text that ParseCursor returns the Cursor for. It has letters,
// digits and dots; that of the zero Cursor is empty.
func (c Cursor) String() string {
	number := func(n uint64) string { return strconv.FormatUint(n, 36) }
	switch {
	case c.ended:
		return "k" + number(uint64(c.at.chunk)) + "." + number(uint64(c.at.offset))
	case c.accepted > 0:
		return "o" + number(uint64(c.accepted)) + "." + c.id.String()
	}
	return ""
}

// ParseCursor returns the Cursor that String gave s for, and whether there is one.
func ParseCursor(s string) (Cursor, bool) {
	var c Cursor
	kind, rest := s[:min(len(s), 1)], s[min(len(s), 1):]
	first, second, _ := strings.Cut(rest, ".")
	// What cannot be parsed becomes something else, whose text is another.
	number := func(s string, bits int) uint64 {
		n, _ := strconv.ParseUint(s, 36, bits)
		return n
	}
	switch kind {
	case "k":
		c.ended, c.at = true, place{uint32(number(first, 32)), uint32(number(second, 32))}
	case "o":
		c.accepted = time.Duration(number(first, 63))
		c.id, _ = ParseID(second)
	}
	if c.String() != s {
		return Cursor{}, false
	}
	return c, true
}

// List returns at most limit jobs, which is at least 1, that follow a cursor: first
// those that have not ended, the last accepted before the others, and then those
// that have, the last ended before the others. If a state is given, it returns the
// jobs in that one alone. There may be more; then next is where they begin. A page
// can have fewer than limit jobs, or none, although there are more.
//
// Who goes on until there are no more gets each job that was there, and in the
// state if one is given, all the time; and gets it once, but for one that ends
// before all that have not ended have been shown: that one may be shown first as it
// was, and on a later page as it has ended.
func (s *Store) List(state State, after Cursor, limit int) (page []Listed, next Cursor, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unended := state == Queued || state == Running
	if !after.ended && (unended || state == "") {
		page, next, more = s.listOpenLocked(state, after, limit)
	}
	if more || unended {
		return page, next, more
	}
	s.evictLocked(s.now())
	// What ends from here on has been shown.
	at := s.kept.end()
	if after.ended {
		at = after.at
	}
	records, at, more := s.kept.before(at, state, limit-len(page))
	for _, r := range records {
		page = append(page, Listed{r.id, s.viewLocked(r.job())})
	}
	return page, Cursor{ended: true, at: at}, more
}

// atOnce is how many jobs that have not ended are looked at before others get the
// lock. There may be millions, and each is a look into memory that no cache has: a
// million take a tenth of a second. Whoever waits for the lock meanwhile has it
// after about a millisecond, when a sync.Mutex becomes fair.
const atOnce = 1000

// listOpenLocked returns the part of List's page that has not ended. It gives up
// the lock in between: a range over a map yields what is there all the time once,
// whatever comes and goes. What it returns is true when it returns.
func (s *Store) listOpenLocked(state State, after Cursor, limit int) (page []Listed, next Cursor, more bool) {
	var (
		nearest []*Job // those that may be on the page: less than twice as many as it takes
		last    *Job   // of a full page, so far; what follows it is for later
		seen    int
	)
	for _, j := range s.open {
		if seen++; seen%atOnce == 0 {
			s.mu.Unlock()
			s.mu.Lock()
		}
		switch {
		case j.accepted == 0: // it may be withdrawn
		case state != "" && j.outcome.State != state:
		case after.accepted > 0 && order(after, j.cursor()) >= 0:
		case last != nil && order(last.cursor(), j.cursor()) < 0:
		default:
			nearest = append(nearest, j)
			if len(nearest) == 2*limit {
				sortJobs(nearest)
				nearest, last, more = nearest[:limit], nearest[limit-1], true
			}
		}
	}
	sortJobs(nearest)
	if len(nearest) > limit {
		nearest, more = nearest[:limit], true
	}
	for _, j := range nearest {
		// Of those that are in another state by now, the ended are found in the log.
		if v := s.viewLocked(j); !v.State.Ended() && (state == "" || v.State == state) {
			page = append(page, Listed{j.ID, v})
		}
	}
	if more {
		next = nearest[limit-1].cursor()
	}
	return page, next, more
}

// cursor returns the place behind a job that has not ended.
func (j *Job) cursor() Cursor { return Cursor{accepted: j.accepted, id: j.ID} }

// order tells which of two places behind jobs that have not ended is the first.
func order(a, b Cursor) int {
	return cmp.Or(cmp.Compare(b.accepted, a.accepted), bytes.Compare(a.id[:], b.id[:]))
}

func sortJobs(jobs []*Job) {
	slices.SortFunc(jobs, func(a, b *Job) int { return order(a.cursor(), b.cursor()) })
}
