package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A Key is what a client calls a request, together with what the client proves
// itself by: another one's key must not open its jobs.
type Key [sha256.Size]byte

// A Print tells requests apart that come under one key.
type Print [sha256.Size]byte

// KeyOf returns the Key for the name that a client has given to its request.
func KeyOf(r *http.Request, name string) Key {
	return digest(nil, []string{name}, r.Header["Authorization"], r.Header["Cookie"])
}

// PrintOf returns the Print of a request with the given body. One that is to run at another
// time is another request: to answer it with the first one's job would break a promise.
func PrintOf(r *http.Request, body []byte) Print {
	what := []string{r.Method, r.Host, r.RequestURI, r.URL.String()}
	if at, delay := r.Header["Run-At"], r.Header["Delay"]; len(at)+len(delay) > 0 {
		return digest(body, what, at, delay)
	}
	return digest(body, what)
}

// digest hashes lists of strings, and what follows them. No two differ only in where they
// are divided. The tail is not copied: it may be large, and nobody has counted a copy.
func digest(tail []byte, lists ...[]string) (sum [sha256.Size]byte) {
	var b []byte
	for _, list := range lists {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	h := sha256.New()
	h.Write(b)
	h.Write(tail)
	h.Sum(sum[:0])
	return sum
}

// A Claim is the right to be the one request under a key.
type Claim struct {
	key     Key
	print   Print
	decided chan struct{} // closed when its job is accepted, or the claim is released
	job     ID            // set before that, if its job is accepted
}

// ErrOtherRequest is returned by Claim when the key stands for another request.
var ErrOtherRequest = errors.New("the key was used for another request")

// Claim returns the job that a request with the same key and print has become,
// or a claim: the request is the first, and must Add a job with it, or Release it.
// While the first one is undecided it blocks, until ctx ends.
func (s *Store) Claim(ctx context.Context, key Key, print Print) (*Job, *Claim, error) {
	for {
		s.mu.Lock()
		s.evictLocked(s.now())
		c, taken := s.claims[key]
		if !taken {
			c = &Claim{key: key, print: print, decided: make(chan struct{})}
			s.claims[key] = c
		}
		s.mu.Unlock()
		switch {
		case !taken:
			return nil, c, nil
		case c.print != print:
			return nil, nil, ErrOtherRequest
		}
		if err := s.await(ctx, c, c.decided); err != nil {
			return nil, nil, err
		}
		s.mu.Lock()
		var j *Job
		var free <-chan struct{}
		if s.claims[key] == c { // neither released, nor evicted with its job, nor freed by it
			j, _ = s.lookupLocked(c.job)
			if j != nil && j.attempts == 0 && j.trace != nil && j.trace.ending {
				free = j.changedLocked() // it never runs, and frees the key when that is on disk
			}
		}
		s.mu.Unlock()
		switch {
		case free != nil:
			if err := s.await(ctx, c, free); err != nil {
				return nil, nil, err
			}
		case j != nil:
			return j, nil, nil
		}
	}
}

// await waits until a channel is closed or ctx ends; but once the job of c was accepted, no
// longer for the disk than its own client does.
func (s *Store) await(ctx context.Context, c *Claim, closed <-chan struct{}) error {
	var again <-chan time.Time
	if s.journal != nil {
		t := time.NewTicker(storeTimeout)
		defer t.Stop()
		again = t.C
	}
	for waits := false; ; {
		select {
		case <-closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-again:
		}
		s.mu.Lock()
		accepted := c.job != (ID{})
		s.mu.Unlock()
		if accepted && waits {
			return fmt.Errorf("%w in %v", ErrNotStored, storeTimeout)
		}
		waits = accepted
	}
}

// Release gives up a claim that no job was accepted for. Otherwise it does nothing,
// so that it can be deferred.
func (s *Store) Release(c *Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(c)
}

func (s *Store) releaseLocked(c *Claim) {
	if s.claims[c.key] == c && c.job == (ID{}) {
		delete(s.claims, c.key)
		close(c.decided)
	}
}
