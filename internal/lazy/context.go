// Package lazy has a context for jobs. It differs from those of package context in
// that it costs nothing until somebody asks for its end, which most jobs never do.
package lazy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A Context has the values of its parent, and the parent's end only if it is attached.
// Its exported fields are set before it is used. Its methods may then be called by any
// number of goroutines at once.
type Context struct {
	Parent   context.Context
	Attached bool            // it ends when Parent does
	Stop     context.Context // it ends when Stop does
	Owner    any             // the value for the key OwnerKey{}
	Limit    time.Time       // its deadline; zero: none besides that of Parent, if attached

	made  atomic.Pointer[made] // nil until somebody asks
	mu    sync.Mutex           // protects the following field, and the making of made
	ended bool
}

// OwnerKey is the key of the innermost owner among the values of a context.
type OwnerKey struct{}

// made is what can end.
type made struct {
	context.Context
	cancel context.CancelCauseFunc
}

// Values returns a context with the values of ctx: of a Context the parent. Through
// the Context itself, a chain of jobs, each submitted by the one before, would keep all
// its ancestors in memory.
func Values(ctx context.Context) context.Context {
	if c, ok := ctx.(*Context); ok {
		return c.Parent
	}
	return ctx
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) { return c.make().Deadline() }

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.make().Done() }

// Err implements context.Context.
func (c *Context) Err() error { return c.make().Err() }

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if key == (OwnerKey{}) {
		return c.Owner
	}
	m := c.made.Load()
	if m == nil && c.Stop.Err() != nil {
		m = c.make()
	}
	if m != nil {
		return m.Value(key) // also how package context finds a cause, and what to attach children to
	}
	return c.parent().Value(key)
}

func (c *Context) parent() context.Context {
	if c.Attached {
		return c.Parent
	}
	return context.WithoutCancel(c.Parent)
}

// Cancel ends the context with a cause.
func (c *Context) Cancel(cause error) { c.make().cancel(cause) }

// End ends the context for good, and costs little if nobody has asked for it.
func (c *Context) End() {
	c.mu.Lock()
	c.ended = true
	m := c.made.Load()
	c.mu.Unlock()
	if m != nil {
		m.cancel(context.Canceled)
	}
}

// make returns what can end, and makes it the first time.
func (c *Context) make() *made {
	if m := c.made.Load(); m != nil {
		return m
	}
	m := c.new() // without the lock: the parent's methods are code of others
	c.mu.Lock()
	first := c.made.Load()
	if first == nil {
		first = m
		c.made.Store(m)
	}
	ended := c.ended
	c.mu.Unlock()
	if ended || first != m { // another goroutine was faster
		m.cancel(context.Canceled)
	}
	return first
}

func (c *Context) new() *made {
	ctx, cancel := context.WithCancelCause(c.parent())
	if c.Stop.Err() != nil {
		cancel(context.Cause(c.Stop)) // AfterFunc would take a moment
	}
	unlink := context.AfterFunc(c.Stop, func() { cancel(context.Cause(c.Stop)) })
	if c.Limit.IsZero() {
		return &made{ctx, func(cause error) { cancel(cause); unlink() }}
	}
	late, stop := context.WithDeadline(ctx, c.Limit)
	return &made{late, func(cause error) { cancel(cause); stop(); unlink() }}
}
