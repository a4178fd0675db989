package holdfast

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// In any other order the submitter that has waited longest could starve.
func TestG4BlockIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		var r record
		end := make(chan struct{})
		for i := range 20 {
			go d.Go(bg, func(context.Context) error { <-end; r.add(i); return nil })
			synctest.Wait()
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 2, Accepted: 3, Running: 1, Queued: 2, Blocked: 17})
		if err := d.With(Reject).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("Reject beside blocked submitters: %v", err)
		}
		for i := range 20 {
			end <- struct{}{}
			synctest.Wait()
			if st := d.Stats(); st.Blocked != max(16-i, 0) {
				t.Errorf("after %d ends: %s", i+1, brief(st))
			}
		}
		r.expect(t, upTo(20)...)
	})
}

// If the wait did not end with the context, a request whose client has left would
// wait on, or run.
func TestG4BlockEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		open := make(gate)
		fill(t, d, open.pass)
		var r record
		errs := make([]error, 6)
		cancels := make([]context.CancelFunc, 6)
		for i := range 6 {
			var ctx context.Context
			ctx, cancels[i] = context.WithCancel(bg)
			if i == 5 {
				ctx, cancels[i] = context.WithTimeout(bg, time.Second)
			}
			defer cancels[i]()
			errs[i] = errors.New("has not returned")
			go func() { errs[i] = d.Go(ctx, r.job(i)) }()
			synctest.Wait()
		}
		for _, i := range []int{2, 0, 4} { // from the middle, the head and the tail
			cancels[i]()
			synctest.Wait()
			if errs[i] != context.Canceled {
				t.Errorf("submitter %d: %v", i, errs[i])
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if errs[5] != context.DeadlineExceeded {
			t.Errorf("submitter 5: %v", errs[5])
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Queued: 1, Blocked: 2, RefusedFull: 1, RefusedGone: 4})
		close(open)
		synctest.Wait()
		r.expect(t, 1, 3)
		if err := d.Go(expired, nop); err != context.Canceled { // places are free
			t.Errorf("with a context that has ended: %v", err)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 4, Succeeded: 4, RefusedFull: 1, RefusedGone: 5})
	})
}

// A submitter that leaves at the moment when it is let in must not take the place
// with it, nor have its job run although its call returned an error.
func TestG4LeavingMeetsAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var accepted, gone int
		for range 1000 {
			d := build(t, sized(1, 0))
			open := make(gate)
			mustGo(t, d, open.pass)
			var ran, told [4]atomic.Bool
			var wg sync.WaitGroup
			var cancels []context.CancelFunc
			for i := range 4 {
				ctx, cancel := context.WithCancel(bg)
				cancels = append(cancels, cancel)
				wg.Go(func() {
					told[i].Store(d.Go(ctx, func(context.Context) error { ran[i].Store(true); return nil }) == nil)
				})
			}
			synctest.Wait()
			go close(open)
			for _, cancel := range cancels {
				go cancel()
			}
			wg.Wait()
			synctest.Wait()
			for i := range 4 {
				if ran[i].Load() != told[i].Load() {
					t.Fatalf("told that it is accepted: %v, ran: %v", told[i].Load(), ran[i].Load())
				}
				if told[i].Load() {
					accepted++
				} else {
					gone++
				}
			}
			if err := d.With(Reject).Go(bg, nop); err != nil {
				t.Fatalf("the place is lost: %v", err)
			}
			d.Shutdown(bg)
		}
		t.Logf("%d accepted, %d gone", accepted, gone)
	})
}

// A newcomer must not take the place that is meant for a waiting submitter.
func TestG4NewcomersDoNotPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 300 {
			d := build(t, sized(1, 0))
			first, open := make(gate), make(gate)
			mustGo(t, d, first.pass)
			var served atomic.Bool
			go func() { d.Go(bg, open.pass); served.Store(true) }()
			synctest.Wait()
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					for n := 1; !served.Load(); n++ {
						if d.With(Reject).Go(bg, nop) == nil {
							t.Error("a newcomer got the place")
						}
						if n%10 == 0 { // there may be one processor
							runtime.Gosched()
						}
					}
				})
			}
			for d.Stats().RefusedFull < 20 { // they are at it
				runtime.Gosched()
			}
			close(first)
			wg.Wait()
			close(open)
			d.Shutdown(bg)
		}
	})
}

// A refusal that takes time takes what its caller wants to save.
func TestG4RejectAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 1)
		cfg.Overflow = Reject
		d := build(t, cfg)
		open := make(gate)
		defer close(open)
		mustGo(t, d, open.pass)
		mustGo(t, d, open.pass)
		start := time.Now()
		if err := d.Go(bg, nop); err != ErrQueueFull {
			t.Errorf("Go: %v", err)
		}
		if j, err := d.Submit(bg, nop); err != ErrQueueFull || j != nil {
			t.Errorf("Submit: %v %v", j, err)
		}
		if err := d.Do(bg, nop); err != ErrQueueFull {
			t.Errorf("Do: %v", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("refusals took %v", took)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Queued: 1, RefusedFull: 3})
	})
}

// If one call could drop more, it would empty the queue for the submitters that wait
// behind it.
func TestG4DropOldestDropsAtMostOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 5))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		var queued []*Job
		for i := range 5 {
			queued = append(queued, mustSubmit(t, d, r.job(i)))
		}
		for i := range 100 {
			go d.With(Block).Go(bg, r.job(100+i))
			synctest.Wait()
		}
		var told error
		go func() { told = queued[0].Wait(bg) }()
		synctest.Wait()

		newest := mustSubmit(t, d, r.job(5), DropOldest)
		expectStats(t, d, Stats{Workers: 1, Queue: 5, Accepted: 7, Running: 1, Queued: 5, Blocked: 100, Dropped: 1})
		expectState(t, queued[0], StateDropped, ErrDropped)
		if told != ErrDropped {
			t.Errorf("the waiter was told %v", told)
		}
		for _, j := range append(queued[1:], newest) {
			expectState(t, j, StateQueued, nil)
		}
		close(open)
		synctest.Wait()
		want := upTo(200)
		r.expect(t, append(want[1:6], want[100:]...)...) // the newest ahead of those who wait
	})
}

// DropOldest must not drop where there is room: a free place, or that of a canceled
// job.
func TestG4DropOldestWithRoomDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 3)
		cfg.Overflow = DropOldest
		d := build(t, cfg)
		open := make(gate)
		for range 5 {
			mustGo(t, d, open.pass)
		}
		expectStats(t, d, Stats{Workers: 2, Queue: 3, Accepted: 5, Running: 2, Queued: 3})
		close(open)
		expectStats(t, d, Stats{Workers: 2, Queue: 3, Accepted: 5, Succeeded: 5})
		d.Resize(0)
		jobs := []*Job{mustSubmit(t, d, nop), mustSubmit(t, d, nop), mustSubmit(t, d, nop)}
		jobs[1].Cancel()
		mustGo(t, d, nop)
		expectState(t, jobs[0], StateQueued, nil)
		expectStats(t, d, Stats{Queue: 3, Accepted: 9, Succeeded: 5, Queued: 3, Canceled: 1})
		d.Resize(1)
	})
}

// If DropOldest did not refuse, a running job would be lost, or the bound.
func TestG4DropOldestRefusesWithNothingQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{0, 2} {
			d := build(t, sized(2, l))
			open := make(gate)
			fill(t, d, open.pass)
			// With L > 0 the pool shrinks until only running jobs are left.
			if l > 0 {
				d.Resize(0)
				for range l {
					mustGo(t, d, nop, DropOldest)
				}
				expectStats(t, d, Stats{Queue: l, Accepted: uint64(2 + 2*l), Running: 2, Queued: l, Dropped: uint64(l), RefusedFull: 1})
			} else {
				synctest.Wait()
				if err := d.With(DropOldest).Go(bg, nop); err != ErrQueueFull {
					t.Errorf("%v", err)
				}
				expectStats(t, d, Stats{Workers: 2, Accepted: 2, Running: 2, RefusedFull: 2})
			}
			close(open)
			d.Shutdown(bg)
		}
		d := build(t, sized(0, 0)) // no place at all
		if err := d.With(DropOldest).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("paused, L = 0: %v", err)
		}
	})
}

// Calls that race must neither be refused nor drop more than their share.
func TestG4ConcurrentDropOldest(t *testing.T) {
	for round := range 150 {
		synctest.Test(t, func(t *testing.T) {
			l := []int{10, 2, 1}[round%3]
			d := build(t, sized(0, l))
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					if i%2 == 0 {
						mustGo(t, d, nop, DropOldest)
					} else {
						mustSubmit(t, d, nop, DropOldest)
					}
				})
			}
			wg.Wait()
			expectStats(t, d, Stats{Queue: l, Accepted: 100, Queued: l, Dropped: uint64(100 - l)})
		})
	}
}

// Without a policy per call one policy would have to fit all callers.
func TestG4PolicyPerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, byDefault := range []Overflow{Block, Reject, DropOldest} {
			cfg := sized(0, 1)
			cfg.Overflow = byDefault
			d := build(t, cfg)
			oldest := mustSubmit(t, d, nop)
			if err := d.With(Reject).Go(bg, nop); err != ErrQueueFull {
				t.Errorf("%v, Reject: %v", byDefault, err)
			}
			mustGo(t, d, nop, DropOldest)
			expectState(t, oldest, StateDropped, ErrDropped)
			ctx, cancel := context.WithTimeout(bg, time.Second)
			if err := d.With(Block).Do(ctx, nop); err != context.DeadlineExceeded {
				t.Errorf("%v, Block: %v", byDefault, err)
			}
			cancel()
			if err := d.With(Overflow(3)).Go(bg, nop); err == nil || !strings.Contains(err.Error(), "Overflow(3)") {
				t.Errorf("%v, Overflow(3): %v", byDefault, err)
			}
			expectStats(t, d, Stats{Queue: 1, Accepted: 2, Queued: 1, Dropped: 1, RefusedFull: 1, RefusedGone: 1})
		}
	})
}

// Without SetOverflow an operator would have to restart the server.
func TestG4PolicyChangesWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		oldest := mustSubmit(t, d, nop)
		waits := make(chan error, 1)
		go func() { waits <- d.Go(bg, nop) }()
		synctest.Wait()

		if err := d.SetOverflow(Overflow(3)); err == nil || !strings.Contains(err.Error(), "Overflow(3)") {
			t.Errorf("SetOverflow(Overflow(3)): %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 1, Queued: 1, Blocked: 1})
		if err := d.SetOverflow(Reject); err != nil {
			t.Fatal(err)
		}
		if err := d.Go(bg, nop); err != ErrQueueFull {
			t.Errorf("after Reject: %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 1, Queued: 1, Blocked: 1, RefusedFull: 1})
		d.SetOverflow(DropOldest)
		if got := d.Stats().Overflow; got != DropOldest {
			t.Errorf("the policy is %v", got)
		}
		mustGo(t, d, nop)
		expectState(t, oldest, StateDropped, ErrDropped)
		expectStats(t, d, Stats{Queue: 1, Accepted: 2, Queued: 1, Dropped: 1, Blocked: 1, RefusedFull: 1})
		if err := d.Resize(1); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; err != nil {
			t.Errorf("who waited under Block got %v", err)
		}
	})
}

// TryGo and TrySubmit never wait, whatever the dispatcher's policy is.
func TestG4Try(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, policy := range []Overflow{Block, Reject, DropOldest} {
			cfg := sized(1, 1)
			cfg.Overflow = policy
			d := build(t, cfg)
			open := make(gate)
			start := time.Now()
			if err := d.TryGo(bg, open.pass); err != nil {
				t.Errorf("%v: with room: %v", policy, err)
			}
			synctest.Wait()
			queued, err := d.TrySubmit(bg, func(ctx context.Context) error {
				if err := errors.Join(d.TryGo(ctx, open.pass), d.TryGo(ctx, open.pass)); !errors.Is(err, ErrQueueFull) {
					t.Errorf("%v: from a job without room: %v", policy, err)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("%v: with room: %v", policy, err)
			}
			if err := d.TryGo(bg, nop); err != ErrQueueFull {
				t.Errorf("%v: TryGo without room: %v", policy, err)
			}
			if j, err := d.TrySubmit(bg, nop); j != nil || err != ErrQueueFull {
				t.Errorf("%v: TrySubmit without room: %v, %v", policy, j, err)
			}
			if err := d.TryGo(expired, nop); err != context.Canceled {
				t.Errorf("%v: TryGo of a caller that has gone: %v", policy, err)
			}
			expectState(t, queued, StateQueued, nil)
			if took := time.Since(start); took != 0 {
				t.Errorf("%v: it took %v", policy, took)
			}
			close(open)
			synctest.Wait()
			d.Shutdown(bg)
			expectStats(t, d, Stats{Queue: 1, Accepted: 3, Succeeded: 3, RefusedFull: 3, RefusedGone: 1})
			if _, err := d.TrySubmit(bg, nop); err != ErrClosed || d.TryGo(bg, nop) != ErrClosed {
				t.Errorf("%v: after Shutdown: %v", policy, err)
			}
		}
	})
}

// A Submitter keeps its policy when that of the dispatcher changes, for each kind of
// submit, and takes no part of the dispatcher's state with it.
func TestG4SubmitterKeepsItsPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		block, reject, drop := d.With(Block), d.With(Reject), d.With(DropOldest)
		for n, policy := range []Overflow{Block, Reject, DropOldest} {
			if err := d.SetOverflow(policy); err != nil {
				t.Fatal(err)
			}
			first, err := drop.Submit(bg, nop)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := reject.Submit(bg, nop); err != ErrQueueFull || reject.Go(bg, nop) != ErrQueueFull || reject.Do(bg, nop) != ErrQueueFull {
				t.Errorf("Reject under %v: %v", policy, err)
			}
			ctx, cancel := context.WithTimeout(bg, time.Second)
			if _, err := block.Submit(ctx, nop); err != context.DeadlineExceeded {
				t.Errorf("Block under %v: %v", policy, err)
			}
			cancel()
			expectState(t, first, StateQueued, nil)
			if err := drop.Go(bg, nop); err != nil {
				t.Errorf("DropOldest under %v: %v", policy, err)
			}
			expectState(t, first, StateDropped, ErrDropped)
			ctx, cancel = context.WithTimeout(bg, time.Second)
			if err := drop.Do(ctx, nop); err != context.DeadlineExceeded {
				t.Errorf("DropOldest.Do under %v: %v", policy, err)
			}
			cancel()
			if got := d.Stats(); got.RefusedFull != uint64(3*(n+1)) || got.RefusedGone != uint64(n+1) || got.Canceled != uint64(n+1) {
				t.Errorf("%s", brief(got))
			}
		}
	})
}

// An unknown policy is an error of each submit, also where there is room.
func TestG4UnknownPolicy(t *testing.T) {
	d := build(t, sized(1, 1))
	for _, policy := range unknownPolicies {
		s := d.With(policy)
		_, err := s.Submit(bg, nop)
		for _, err := range []error{err, s.Go(bg, nop), s.Do(bg, nop)} {
			if err == nil || !strings.Contains(err.Error(), policy.String()) {
				t.Errorf("%v: %v", policy, err)
			}
		}
	}
	if st := d.Stats(); st.Accepted != 0 {
		t.Errorf("%s", brief(st))
	}
}

var unknownPolicies = []Overflow{3, 100, 254}

// A client that left is answered and logged as "rejected": chi Throttle. Here it is
// counted as gone, not as refused.
func TestTrapClientThatLeftIsNotRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 0))
		ctx, cancel := context.WithCancel(bg)
		errs := make(chan error, 1)
		go func() { errs <- d.Go(ctx, nop) }()
		synctest.Wait()
		cancel()
		if err := <-errs; err != context.Canceled {
			t.Errorf("%v", err)
		}
		expectStats(t, d, Stats{RefusedGone: 1})
	})
}

func TestOverflowText(t *testing.T) {
	for i, name := range []string{"block", "reject", "drop-oldest"} {
		o := Overflow(i)
		text, err := o.MarshalText()
		if o.String() != name || string(text) != name || err != nil {
			t.Errorf("Overflow(%d) is %q, %q, %v", i, o, text, err)
		}
		back := Overflow(7)
		if err := back.UnmarshalText(text); err != nil || back != o {
			t.Errorf("%q gives %v, %v", text, back, err)
		}
	}
	if Overflow(3).String() != "Overflow(3)" {
		t.Errorf("%v", Overflow(3))
	}
	if _, err := Overflow(3).MarshalText(); err == nil {
		t.Error("Overflow(3) has a text")
	}
	for _, text := range []string{"", "Block", "block ", "dropoldest", "0", "drop-oldest\n"} {
		o := DropOldest
		if err := o.UnmarshalText([]byte(text)); err == nil || o != DropOldest || !strings.Contains(err.Error(), "want block, reject or drop-oldest") {
			t.Errorf("%q: %v, %v", text, o, err)
		}
	}
	var v struct{ Overflow Overflow }
	if err := json.Unmarshal([]byte(`{"overflow":"reject"}`), &v); err != nil || v.Overflow != Reject {
		t.Errorf("%v, %v", v.Overflow, err)
	}
}

// FuzzOverflow: a text is the name of exactly one policy, or changes nothing.
func FuzzOverflow(f *testing.F) {
	for _, seed := range []string{"block", "reject", "drop-oldest", "", "Block", "BLOCK", " block", "block\x00", "drop_oldest", "dropoldest", "0", "Overflow(1)", "\xff\xfe", "\u212aeject"} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(9))
	}
	f.Fuzz(func(t *testing.T, text []byte, before uint8) {
		o := Overflow(before)
		if err := o.UnmarshalText(text); err != nil {
			if o != Overflow(before) {
				t.Fatalf("%q: %v, and changed to %v", text, err, o)
			}
			return
		}
		back, err := o.MarshalText()
		if err != nil || string(back) != string(text) || o > DropOldest {
			t.Fatalf("%q gives %v, which gives %q, %v", text, o, back, err)
		}
	})
}
