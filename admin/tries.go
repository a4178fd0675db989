package admin

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"holdfast/internal/logline"
)

// How wrong tokens are slowed down.
const (
	freeTries    = 10          // that an address has before it is slow
	slowTry      = time.Second // that each further one waits before it is looked at
	mostSlow     = 4           // that wait at once: the listener has few connections
	forgetTries  = time.Minute // without a wrong token from the address
	mostTriers   = 1024        // addresses that are remembered
	networkBits6 = 64          // of IPv6: whoever has one address has its network
)

// tries slows down who guesses the token, address by address, so that the operator
// at another one does not notice. One who shares the address with somebody who
// guesses gets in too, as soon as one of the slow tries is free. To look at a right
// token without a wait would be to look at every token without a wait.
type tries struct {
	spell *logline.Spell

	mu   sync.Mutex // protects the following fields
	from map[netip.Prefix]*failures
	slow int // that wait
}

// failures are the wrong tokens from an address.
type failures struct {
	count int
	last  time.Time
}

func newTries(log *slog.Logger) *tries {
	return &tries{spell: logline.NewSpell(log, "wrong admin token", "no more wrong admin tokens"), from: make(map[netip.Prefix]*failures)}
}

// network returns what a remote address counts as. What is no address is one too.
func network(remote string) netip.Prefix {
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip := addr.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = networkBits6
	}
	network, _ := ip.Prefix(bits) // which has so many
	return network
}

// wait waits until a token from there may be looked at. It reports false if too many
// wait already, or ctx ends.
func (t *tries) wait(ctx context.Context, from netip.Prefix) bool {
	t.mu.Lock()
	f := t.from[from]
	if f == nil || f.count < freeTries || time.Since(f.last) >= forgetTries {
		t.mu.Unlock()
		return true
	}
	if t.slow >= mostSlow {
		t.mu.Unlock()
		return false
	}
	t.slow++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.slow--
		t.mu.Unlock()
	}()
	enough := time.NewTimer(slowTry)
	defer enough.Stop()
	select {
	case <-enough.C:
		return true
	case <-ctx.Done(): // a client that does not wait learns nothing
		return false
	}
}

// failed notes a wrong token.
func (t *tries) failed(from netip.Prefix, remote string) {
	t.spell.Happened("from", remote)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.from[from]
	if f == nil {
		t.makeRoomLocked(now)
		f = new(failures)
		t.from[from] = f
	}
	if now.Sub(f.last) >= forgetTries {
		f.count = 0
	}
	f.count++
	f.last = now
}

// makeRoomLocked forgets addresses so that there is room for one: those of which
// nothing has come for long, else the one of which nothing has come for longest.
func (t *tries) makeRoomLocked(now time.Time) {
	if len(t.from) < mostTriers {
		return
	}
	var oldest netip.Prefix
	last := now
	for from, f := range t.from {
		if now.Sub(f.last) >= forgetTries {
			delete(t.from, from)
		} else if !f.last.After(last) {
			oldest, last = from, f.last
		}
	}
	if len(t.from) >= mostTriers {
		delete(t.from, oldest)
	}
}
