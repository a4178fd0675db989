package holdfast

import (
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Panic values, returned errors, contexts and a logger's handler are code of others.
// Any of their methods may panic, end the goroutine or take its time, and a worker
// survives all of them.

// misdeeds are what a method of others may do instead of what it should.
var misdeeds = map[string]func(){
	"panics":           func() { panic("foreign") },
	"panics with nil":  func() { panic(nil) },
	"dereferences nil": func() { var e *foreignError; e.misdeed() },
	"exits":            runtime.Goexit,
	"blocks":           func() { time.Sleep(time.Second) },
}

type foreignError struct{ misdeed func() }

func (e *foreignError) Error() string   { e.misdeed(); return "foreign" }
func (e *foreignError) Is(error) bool   { e.misdeed(); return false }
func (e *foreignError) As(any) bool     { e.misdeed(); return false }
func (e *foreignError) Unwrap() error   { e.misdeed(); return nil }
func (e *foreignError) String() string  { e.misdeed(); return "foreign" }
func (e *foreignError) Timeout() bool   { e.misdeed(); return true }
func (e *foreignError) Temporary() bool { e.misdeed(); return true }

type foreignJoin struct{ misdeed func() }

func (e *foreignJoin) Error() string   { return "foreign" }
func (e *foreignJoin) Unwrap() []error { e.misdeed(); return nil }

type (
	foreignStringer   struct{ misdeed func() }
	foreignGoStringer struct{ misdeed func() }
	foreignFormatter  struct{ misdeed func() }
	foreignLogValuer  struct{ misdeed func() }
	foreignText       struct{ misdeed func() }
	foreignJSON       struct{ misdeed func() }

	// An uncomparable error makes == panic where both sides have its type.
	uncomparable []error
)

func (s *foreignStringer) String() string           { s.misdeed(); return "foreign" }
func (s *foreignGoStringer) GoString() string       { s.misdeed(); return "foreign" }
func (s *foreignFormatter) Format(fmt.State, rune)  { s.misdeed() }
func (s *foreignLogValuer) LogValue() slog.Value    { s.misdeed(); return slog.StringValue("foreign") }
func (s *foreignText) MarshalText() ([]byte, error) { s.misdeed(); return []byte("foreign"), nil }
func (s *foreignJSON) MarshalJSON() ([]byte, error) { s.misdeed(); return []byte(`"foreign"`), nil }
func (u uncomparable) Error() string                { return "uncomparable" }
func (u uncomparable) Unwrap() []error              { return u }

var (
	_ fmt.Stringer           = (*foreignStringer)(nil)
	_ fmt.GoStringer         = (*foreignGoStringer)(nil)
	_ fmt.Formatter          = (*foreignFormatter)(nil)
	_ slog.LogValuer         = (*foreignLogValuer)(nil)
	_ encoding.TextMarshaler = (*foreignText)(nil)
	_ json.Marshaler         = (*foreignJSON)(nil)
)

// foreignErrors are errors whose methods do a misdeed.
func foreignErrors(misdeed func()) []error {
	return []error{
		(*foreignError)(nil), // the usual mistake
		(*foreignJoin)(nil),
		&foreignError{misdeed},
		&foreignJoin{misdeed},
		fmt.Errorf("wrapped: %w", error(&foreignJoin{misdeed})),
		errors.Join(&foreignError{misdeed}, context.Canceled),
		uncomparable{&foreignError{misdeed}, context.DeadlineExceeded},
	}
}

// foreignValues are what a function may panic with.
func foreignValues(misdeed func()) []any {
	values := []any{
		&foreignStringer{misdeed}, &foreignGoStringer{misdeed}, &foreignFormatter{misdeed},
		&foreignLogValuer{misdeed}, &foreignText{misdeed}, &foreignJSON{misdeed},
		(*foreignStringer)(nil), (*foreignLogValuer)(nil),
	}
	for _, err := range foreignErrors(misdeed) {
		values = append(values, err)
	}
	return values
}

var logFormats = []func(io.Writer, *slog.HandlerOptions) slog.Handler{
	func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, o) },
	func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewJSONHandler(w, o) },
}

// eachMisdeed calls test in a bubble of its own for each misdeed, with a dispatcher
// that has one worker and logs in some format. After the test that worker must be
// there.
func eachMisdeed(t *testing.T, test func(t *testing.T, name string, misdeed func(), d *Dispatcher)) {
	for name, misdeed := range misdeeds {
		for _, format := range logFormats {
			synctest.Test(t, func(t *testing.T) {
				d := build(t, Config{Workers: 1, Queue: 2, JobTimeout: time.Hour, Logger: slog.New(format(io.Discard, nil))})
				test(t, name, misdeed, d)
				hasOneWorker(t, name, d)
			})
		}
	}
}

// hasOneWorker checks that the one worker of a dispatcher runs jobs.
func hasOneWorker(t *testing.T, name string, d *Dispatcher) {
	t.Helper()
	synctest.Wait()
	time.Sleep(10 * time.Second) // whatever blocks has returned
	open := make(gate)
	first, second := mustSubmit(t, d, open.pass), mustSubmit(t, d, open.pass)
	synctest.Wait()
	if a, b := first.State(), second.State(); a != StateRunning || b != StateQueued {
		t.Errorf("%s: with one worker the jobs are %v and %v", name, a, b)
	}
	close(open)
	synctest.Wait()
	expectState(t, second, StateSucceeded, nil)
}

// identical compares errors without calling their methods.
func identical(a, b any) bool {
	return fmt.Sprintf("%p %T", a, a) == fmt.Sprintf("%p %T", b, b)
}

func TestG9ForeignPanicValues(t *testing.T) {
	eachMisdeed(t, func(t *testing.T, name string, misdeed func(), d *Dispatcher) {
		values := foreignValues(misdeed)
		for _, value := range values {
			fn := func(context.Context) error { panic(value) }
			mustGo(t, d, fn)
			j := mustSubmit(t, d, fn)
			err := d.Do(bg, fn)
			for _, err := range []error{err, j.Err()} {
				p, ok := err.(*PanicError)
				if !ok || !identical(p.Value, value) {
					t.Errorf("%s: %T: the error is a %T", name, value, err)
				}
			}
			if j.State() != StatePanicked {
				t.Errorf("%s: %T: %v", name, value, j.State())
			}
		}
		if st := d.Stats(); st.Panicked != uint64(3*len(values)) {
			t.Errorf("%s: %s", name, brief(st))
		}
	})
}

// A returned error is looked at when the job was canceled or is late, too.
func TestG9ForeignErrors(t *testing.T) {
	eachMisdeed(t, func(t *testing.T, name string, misdeed func(), d *Dispatcher) {
		errs := foreignErrors(misdeed)
		for _, foreign := range errs {
			mustGo(t, d, func(context.Context) error { return foreign })
			if err := d.Do(bg, func(context.Context) error { return foreign }); !identical(err, foreign) {
				t.Errorf("%s: %T: Do returned a %T", name, foreign, err)
			}
			ctx, cancel := context.WithTimeout(bg, time.Minute)
			d.Do(ctx, func(c context.Context) error { <-c.Done(); return foreign })
			cancel()
			canceled := mustSubmit(t, d, func(c context.Context) error { <-c.Done(); return foreign })
			late := mustSubmit(t, d, func(c context.Context) error { <-c.Done(); return foreign })
			synctest.Wait()
			canceled.Cancel()
			time.Sleep(2 * time.Hour)
			if canceled.State() != StateCanceled || late.State() != StateFailed || canceled.Err() == nil || late.Err() == nil {
				t.Errorf("%s: %T: %v and %v", name, foreign, canceled.State(), late.State())
			}
		}
		n := uint64(len(errs))
		expectStats(t, d, Stats{Workers: 1, Queue: 2, Accepted: 5 * n, Failed: 4 * n, Canceled: n})
	})
}

// A foreignHandler is a logger's handler of which one method does a misdeed.
type foreignHandler struct {
	slog.Handler
	method  string
	misdeed func()
}

func (h foreignHandler) Enabled(context.Context, slog.Level) bool {
	if h.method == "Enabled" {
		h.misdeed()
	}
	return true
}

func (h foreignHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.method == "Handle" {
		h.misdeed()
	}
	return errors.New("the disk is full")
}

func TestG9ForeignLogger(t *testing.T) {
	for name, misdeed := range misdeeds {
		for _, method := range []string{"Enabled", "Handle", ""} {
			synctest.Test(t, func(t *testing.T) {
				d := build(t, Config{Workers: 1, Queue: 2, Logger: slog.New(foreignHandler{slog.DiscardHandler, method, misdeed})})
				start := time.Now()
				j := mustSubmit(t, d, func(context.Context) error { panic("boom") })
				synctest.Wait()
				d.Stats() // is not held up by a handler that blocks
				mustGo(t, d, nop)
				if took := time.Since(start); took != 0 {
					t.Errorf("%s: others waited %v for the logger", name, took)
				}
				j.Wait(bg)
				if j.State() != StatePanicked {
					t.Errorf("%s: %v", name, j.State())
				}
				hasOneWorker(t, name, d)
			})
		}
	}
}

// A foreignContext is a context of which one method does a misdeed once it is armed.
type foreignContext struct {
	context.Context
	method  string
	misdeed func()
	armed   *atomic.Bool
}

func (c *foreignContext) do(method string) {
	if c.method == method && c.armed.Load() {
		c.misdeed()
	}
}

func (c *foreignContext) Deadline() (time.Time, bool) { c.do("Deadline"); return c.Context.Deadline() }
func (c *foreignContext) Done() <-chan struct{}       { c.do("Done"); return c.Context.Done() }
func (c *foreignContext) Err() error                  { c.do("Err"); return c.Context.Err() }
func (c *foreignContext) Value(key any) any           { c.do("Value"); return c.Context.Value(key) }

// eachContext calls test for each method of a context and each misdeed. The context
// is armed while the job runs, so that the submit itself meets none of it: there the
// caller's own goroutine would suffer what the caller's context does.
func eachContext(t *testing.T, test func(t *testing.T, name string, c *foreignContext, d *Dispatcher)) {
	for name, misdeed := range misdeeds {
		for _, method := range []string{"Deadline", "Done", "Err", "Value"} {
			synctest.Test(t, func(t *testing.T) {
				d := build(t, Config{Workers: 1, Queue: 2, Logger: quiet})
				ctx, cancel := context.WithCancel(bg)
				defer cancel()
				c := &foreignContext{ctx, method, misdeed, new(atomic.Bool)}
				name := fmt.Sprintf("%s %s", method, name)
				test(t, name, c, d)
				hasOneWorker(t, name, d)
			})
		}
	}
}

// The context of a job calls that of its submitter, in the job's function.
func TestG9ForeignContextOfASubmit(t *testing.T) {
	eachContext(t, func(t *testing.T, name string, c *foreignContext, d *Dispatcher) {
		for _, use := range []func(context.Context){
			func(context.Context) {},
			func(c context.Context) { c.Err() },
			func(c context.Context) { c.Done() },
			func(c context.Context) { c.Deadline() },
			func(c context.Context) { c.Value(ctxKey("k")) },
			func(c context.Context) {
				_, cancel := context.WithTimeout(c, time.Minute)
				defer cancel()
			},
			func(c context.Context) { context.Cause(c) },
		} {
			for _, early := range []bool{true, false} {
				c.armed.Store(false)
				j, err := d.Submit(c, func(ctx context.Context) error {
					if early {
						ctx.Err()
					}
					c.armed.Store(true)
					use(ctx)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if !j.State().Ended() {
					t.Errorf("%s: %v", name, j.State())
				}
			}
		}
	})
}

// A handler that panics with code of others, over HTTP.
func TestForeignPanicsOverHTTP(t *testing.T) {
	eachMisdeed(t, func(t *testing.T, name string, misdeed func(), d *Dispatcher) {
		jobs := mustJobs(t, d, JobsConfig{OnEnd: func(JobInfo) {}})
		for _, value := range foreignValues(misdeed) {
			h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(value) })
			var queued *httptest.ResponseRecorder
			go func() { queued = post(jobs.Queued(h), "") }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if queued == nil {
				t.Fatalf("%s: %T: Queued has not answered", name, value)
			}
			expectProblem(t, queued, 500, "the handler panicked", "")
			id := accepted(t, post(jobs.Async(h), ""))
			time.Sleep(time.Minute)
			if i, ok := jobs.Lookup(ID(id)); !ok || i.State != "failed" || i.Error != "the handler panicked" {
				t.Errorf("%s: %T: %+v", name, value, i)
			}
		}
	})
}
