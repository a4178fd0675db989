package patience

import (
	"math/rand/v2"
	"sync"
	"time"
)

// farthest is the most that a Pushback adds, in seconds.
const farthest = 32

// A Pushback says how much later than the queue alone would say those who are refused
// should come back: it doubles for each second in which refusals go on, and falls by one
// for each second without. A queue that refuses has no room for the ones who were refused
// either, if they all come back when it is empty. The zero Pushback is ready to use. It is
// safe for concurrent use.
type Pushback struct {
	mu      sync.Mutex // protects the following fields
	level   int        // seconds
	changed time.Time  // when level last was
	last    time.Time  // when a request was last refused
}

// Refused tells that a request is being refused, and returns the seconds to add. They are
// spread, so that those who were refused together do not come back together.
func (p *Pushback) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	quiet := now.Sub(p.last)
	switch {
	case quiet >= 2*time.Second: // also the first time
		p.level = max(0, p.level-int(min(quiet/time.Second, farthest)))
		p.changed = now
	case now.Sub(p.changed) >= time.Second:
		p.level = min(max(1, 2*p.level), farthest)
		p.changed = now
	}
	p.last = now
	return p.level/2 + rand.IntN(p.level-p.level/2+1)
}
