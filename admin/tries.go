package admin

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"holdfast/internal/trouble"
)

// How wrong tokens are slowed down.
const (
	freeTries    = 10          // that an address has before it is slow
	slowTry      = time.Second // that each further one waits before it is looked at
	mostSlow     = 4           // that wait at once: the listener has few connections
	forgetTries  = time.Minute // without a wrong token from the address
	forgetRight  = time.Hour   // since the last right one
	mostTriers   = 1024        // addresses that are remembered
	networkBits6 = 64          // of IPv6: whoever has one address has its network
)

// tries slows down who guesses the token, address by address, so that the operator
// at another one does not notice. An operator whose address somebody else guesses from
// is slow too, since to look at a right token without a wait would be to look at every
// token without a wait, but is always looked at if the address has had a right one.
type tries struct {
	wrong *trouble.Log

	mu   sync.Mutex // protects the following fields
	from map[netip.Prefix]*trier
	slow int // that wait
}

// A trier is an address that tokens have come from.
type trier struct {
	wrong       int       // tokens, with less than forgetTries between them
	last, right time.Time // of the last wrong one, and of the last right one
}

// idle reports whether there is nothing to remember of the address.
func (f *trier) idle(now time.Time) bool {
	return now.Sub(f.last) >= forgetTries && now.Sub(f.right) >= forgetRight
}

func newTries(log *slog.Logger) *tries {
	return &tries{wrong: &trouble.Log{Logger: log, What: "wrong admin token", Over: "no more wrong admin tokens", Quiet: true}, from: make(map[netip.Prefix]*trier)}
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
	if f == nil || f.wrong < freeTries || time.Since(f.last) >= forgetTries {
		t.mu.Unlock()
		return true
	}
	if t.slow >= mostSlow && time.Since(f.right) >= forgetRight {
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
	t.wrong.Failed("from", remote)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	f := t.trierLocked(from, now)
	if now.Sub(f.last) >= forgetTries {
		f.wrong = 0
	}
	f.wrong++
	f.last = now
}

// succeeded notes a right token.
func (t *tries) succeeded(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.trierLocked(from, now).right = now
}

func (t *tries) trierLocked(from netip.Prefix, now time.Time) *trier {
	f := t.from[from]
	if f == nil {
		t.makeRoomLocked(now)
		f = new(trier)
		t.from[from] = f
	}
	return f
}

// seen returns when a token has come from the address last.
func (f *trier) seen() time.Time {
	if f.right.After(f.last) {
		return f.right
	}
	return f.last
}

// makeRoomLocked forgets addresses so that there is room for one: those that are idle,
// else the one that no token has come from for longest.
func (t *tries) makeRoomLocked(now time.Time) {
	if len(t.from) < mostTriers {
		return
	}
	var oldest netip.Prefix
	last := now.Add(1)
	for from, f := range t.from {
		if f.idle(now) {
			delete(t.from, from)
		} else if seen := f.seen(); seen.Before(last) {
			oldest, last = from, seen
		}
	}
	if len(t.from) >= mostTriers {
		delete(t.from, oldest)
	}
}
