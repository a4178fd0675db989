package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/memtest"
)

// A guesser tries tokens at a Handler.
type guesser struct {
	f   *fixture
	log memtest.Log
}

func (g *guesser) text() string {
	synctest.Wait()
	return g.log.String()
}

func newGuesser(t *testing.T) *guesser {
	g := &guesser{}
	g.f = newFixture(t, holdfast.Config{Workers: 5}, func(c *Config) {
		c.Token = token
		c.Logger = slog.New(slog.NewTextHandler(&g.log, nil))
	})
	return g
}

// try returns the status, and how long the answer took.
func (g *guesser) try(ctx context.Context, from, token string) (int, time.Duration) {
	r := httptest.NewRequestWithContext(ctx, "GET", "/stats", nil)
	r.Host, r.RemoteAddr = "127.0.0.1:8100", from
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	began := time.Now()
	g.f.h.ServeHTTP(w, r)
	return w.Code, time.Since(began)
}

func (g *guesser) expect(from, token string, status int, after time.Duration) {
	g.f.t.Helper()
	if got, took := g.try(context.Background(), from, token); got != status || took != after {
		g.f.t.Errorf("%s, token %q: %d after %v, want %d after %v", from, token, got, took, status, after)
	}
}

// Whoever guesses is slow after ten tries, and nobody else is.
func TestTriesAreSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesser(t)
		const guesses, operator = "192.0.2.1:1", "192.0.2.2:1"
		for range freeTries {
			g.expect(guesses, "wrong", 401, 0)
		}
		for range 3 {
			g.expect(guesses, "wrong", 401, slowTry)
			g.expect("192.0.2.1:2", "wrong", 401, slowTry)
			g.expect("[::ffff:192.0.2.1]:2", "wrong", 401, slowTry)
			g.expect(operator, token, 200, 0)
			g.expect(operator, "", 401, 0)
			g.expect(guesses, "", 401, 0) // no try
		}
		g.expect(guesses, token, 200, slowTry)
		time.Sleep(forgetTries)
		g.expect(guesses, token, 200, 0)
		for range freeTries {
			g.expect(guesses, "wrong", 401, 0)
		}
		g.expect(guesses, "wrong", 401, slowTry)
	})
}

// Of IPv6 a network is one address: whoever has one of them has all.
func TestTriesNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesser(t)
		for i := range freeTries {
			g.expect(fmt.Sprintf("[2001:db8::%x]:1", i), "wrong", 401, 0)
		}
		g.expect("[2001:db8::abcd:1]:1", "wrong", 401, slowTry)
		g.expect("[2001:db8:0:1::1]:1", "wrong", 401, 0)
		for range freeTries {
			g.expect("@", "wrong", 401, 0) // a socket without addresses
		}
		g.expect("@", "wrong", 401, slowTry)
	})
}

// Many at once do not hold all connections, and are not looked at faster.
func TestTriesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesser(t)
		for range freeTries {
			g.expect("192.0.2.1:1", "wrong", 401, 0)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := make(map[int]int)
		for range 50 {
			wg.Go(func() {
				status, _ := g.try(context.Background(), "192.0.2.1:1", "wrong")
				mu.Lock()
				got[status]++
				mu.Unlock()
			})
		}
		synctest.Wait()
		g.expect("192.0.2.2:1", token, 200, 0)
		g.expect("192.0.2.1:1", token, 429, 0) // it has not looked
		wg.Wait()
		if got[401] != mostSlow || got[429] != 50-mostSlow {
			t.Errorf("%v, want %d times 401, and else 429", got, mostSlow)
		}
		// One that does not wait for the answer makes room, and has learned nothing.
		for range 3 * mostSlow {
			ctx, leave := context.WithTimeout(context.Background(), slowTry/10)
			if status, took := g.try(ctx, "192.0.2.1:1", token); status != 429 || took != slowTry/10 {
				t.Errorf("%d after %v, want 429 when the client leaves", status, took)
			}
			leave()
		}
		g.expect("192.0.2.1:1", token, 200, slowTry)
		// There the operator has been, and gets in whoever else tries.
		g.try(context.Background(), "192.0.2.1:1", "wrong")
		for range 50 {
			wg.Go(func() { g.try(context.Background(), "192.0.2.1:1", "wrong") })
		}
		synctest.Wait()
		g.expect("192.0.2.1:1", token, 200, slowTry)
		wg.Wait()
	})
}

// Addresses without number take bounded memory, and the latest are the slow ones.
func TestTriesBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesser(t)
		for i := range mostTriers + 100 {
			for range 1 + (freeTries-1)*(i/mostTriers) { // of the last ones, as many as are free
				g.try(context.Background(), fmt.Sprintf("[2001:db8:%x::1]:1", i), "wrong")
			}
			time.Sleep(time.Millisecond)
		}
		if n := len(g.f.h.tries.from); n > mostTriers {
			t.Errorf("%d addresses, want at most %d", n, mostTriers)
		}
		g.expect(fmt.Sprintf("[2001:db8:%x::1]:1", mostTriers), "wrong", 401, slowTry)
		g.expect(fmt.Sprintf("[2001:db8:%x::1]:1", mostTriers+99), "wrong", 401, slowTry)
		time.Sleep(forgetTries)
		g.try(context.Background(), "[2001:db9::1]:1", "wrong")
		if n := len(g.f.h.tries.from); n != 1 {
			t.Errorf("%d addresses a minute later, want 1", n)
		}
	})
}

// The log has that somebody guesses and from where, and stays short.
func TestTriesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesser(t)
		g.try(context.Background(), "192.0.2.1:1", "")
		g.try(context.Background(), "192.0.2.1:1", token)
		if log := g.text(); log != "" {
			t.Errorf("%s, want nothing", log)
		}
		for range freeTries {
			g.try(context.Background(), "192.0.2.1:99", "guessed")
		}
		if log := g.text(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `msg="wrong admin token" from=192.0.2.1:99`) || strings.Contains(log, "guessed") {
			t.Errorf("%s, want one line, without the token", log)
		}
		time.Sleep(3 * time.Minute)
		if log := g.text(); strings.Count(log, "\n") != 3 || !strings.Contains(log, `times=9 `) || !strings.Contains(log, `msg="no more wrong admin tokens" times=10`) {
			t.Errorf("%s, want the number and the end", log)
		}
	})
}
