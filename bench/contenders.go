package main

import (
	"context"
	"sync"

	"github.com/alitto/pond/v2"
	"github.com/gammazero/workerpool"
	"github.com/panjf2000/ants/v2"
	conc "github.com/sourcegraph/conc/pool"

	"holdfast"
)

// A job has its function in the two forms that contenders take. Both are made in
// advance, so that no submit pays for an adapter.
type job struct {
	plain   func()
	withCtx func(context.Context) error
}

func newJob(f func()) *job {
	return &job{plain: f, withCtx: func(context.Context) error { f(); return nil }}
}

// A contender is one way to run jobs on a bounded number of goroutines.
type contender struct {
	name   string
	queue  string // where jobs wait
	handle bool   // submit returns a handle
	parks  bool   // a waiting job is a blocked submitter
	open   func(workers, queue int) pool
}

// A pool is a contender that is running.
type pool struct {
	submit func(*job) any // blocks while the pool is full
	wait   func(any)      // blocks until the handle's job has ended

	// flush blocks until every job has reached a worker. It is nil if jobs start in
	// the order of submission.
	flush func()

	close func() // ends the goroutines, once all jobs have ended
}

// contenders are compared with the first one that has the same kind of submit.
var contenders = []contender{
	{name: "Holdfast Go", queue: "bounded", open: func(workers, queue int) pool {
		d := newHoldfast(workers, queue)
		return pool{
			submit: func(j *job) any { must(d.Go(context.Background(), j.withCtx)); return nil },
			close:  func() { shutdown(d) },
		}
	}},
	{name: "bare channel", queue: "bounded", open: func(workers, queue int) pool {
		jobs, end := rangeOver(workers, queue)
		return pool{submit: func(j *job) any { jobs <- j.plain; return nil }, close: end}
	}},
	{name: "pond Go", queue: "bounded", open: func(workers, queue int) pool {
		p := pond.NewPool(workers, pond.WithQueueSize(queue))
		return pool{submit: func(j *job) any { must(p.Go(j.plain)); return nil }, close: p.StopAndWait}
	}},
	{name: "ants Submit", queue: "none: submitters wait", parks: true, open: func(workers, _ int) pool {
		p, err := ants.NewPool(workers)
		must(err)
		return pool{
			submit: func(j *job) any { must(p.Submit(j.plain)); return nil },
			close:  func() { must(p.ReleaseContext(context.Background())) },
		}
	}},
	{name: "workerpool Submit", queue: "unbounded", open: func(workers, _ int) pool {
		p := workerpool.New(workers)
		return pool{submit: func(j *job) any { p.Submit(j.plain); return nil }, close: p.StopWait}
	}},
	{name: "conc Go", queue: "none: submitters wait", parks: true, open: func(workers, _ int) pool {
		p := conc.New().WithMaxGoroutines(workers)
		return pool{submit: func(j *job) any { p.Go(j.plain); return nil }, close: p.Wait}
	}},
	{name: "goroutine per job", queue: "none: all run at once", open: func(int, int) pool {
		var jobs sync.WaitGroup
		return pool{
			submit: func(j *job) any { jobs.Go(j.plain); return nil },
			flush:  jobs.Wait,
			close:  func() {},
		}
	}},
	{name: "newdispatch, literal", queue: "bounded", open: newDispatch},
	{name: "old dispatch", queue: "a goroutine per job, unbounded", open: oldDispatch},

	{name: "Holdfast Submit", queue: "bounded", handle: true, open: func(workers, queue int) pool {
		d := newHoldfast(workers, queue)
		return pool{
			submit: func(j *job) any {
				h, err := d.Submit(context.Background(), j.withCtx)
				must(err)
				return h
			},
			wait:  func(h any) { must(h.(*holdfast.Job).Wait(context.Background())) },
			close: func() { shutdown(d) },
		}
	}},
	{name: "bare channel, done channel per job", queue: "bounded", handle: true, open: func(workers, queue int) pool {
		jobs, end := rangeOver(workers, queue)
		return pool{
			submit: func(j *job) any {
				done := make(chan struct{})
				jobs <- func() { j.plain(); close(done) }
				return done
			},
			wait:  func(h any) { <-h.(chan struct{}) },
			close: end,
		}
	}},
	{name: "pond Submit", queue: "bounded", handle: true, open: func(workers, queue int) pool {
		p := pond.NewPool(workers, pond.WithQueueSize(queue))
		return pool{
			submit: func(j *job) any { return p.Submit(j.plain) },
			wait:   func(h any) { must(h.(pond.Task).Wait()) },
			close:  p.StopAndWait,
		}
	}},
}

func newHoldfast(workers, queue int) *holdfast.Dispatcher {
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: queue})
	must(err)
	return d
}

func shutdown(d *holdfast.Dispatcher) {
	_, err := d.Shutdown(context.Background())
	must(err)
}

// rangeOver starts workers that range over one channel.
func rangeOver(workers, queue int) (jobs chan func(), end func()) {
	jobs = make(chan func(), queue)
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for f := range jobs {
				f()
			}
		})
	}
	return jobs, func() { close(jobs); running.Wait() }
}

// register starts workers that register their channel in a channel of channels
// before every job. Closing a registered channel ends its worker.
func register(workers int) (idle chan chan func(), running *sync.WaitGroup) {
	idle = make(chan chan func(), workers)
	running = new(sync.WaitGroup)
	for range workers {
		running.Go(func() {
			mine := make(chan func())
			for {
				idle <- mine
				f, ok := <-mine
				if !ok {
					return
				}
				f()
			}
		})
	}
	return idle, running
}

// newDispatch takes an idle worker first and then a job, like Holdfast, but without
// the shortcut for a worker that has just finished.
func newDispatch(workers, queue int) pool {
	jobs := make(chan func(), queue)
	idle, running := register(workers)
	running.Go(func() {
		for left := workers; left > 0; {
			worker := <-idle
			if f, ok := <-jobs; ok {
				worker <- f
			} else {
				close(worker)
				left--
			}
		}
	})
	return pool{
		submit: func(j *job) any { jobs <- j.plain; return nil },
		close:  func() { close(jobs); running.Wait() },
	}
}

// oldDispatch takes a job first, and starts a goroutine that waits for an idle worker.
// So the queue never fills, and there is no bound.
func oldDispatch(workers, queue int) pool {
	jobs := make(chan func(), queue)
	idle, running := register(workers)
	var waiting sync.WaitGroup
	running.Go(func() {
		for f := range jobs {
			go func() {
				worker := <-idle
				worker <- f
				waiting.Done()
			}()
		}
		for range workers {
			close(<-idle)
		}
	})
	return pool{
		submit: func(j *job) any { waiting.Add(1); jobs <- j.plain; return nil },
		flush:  waiting.Wait,
		close:  func() { close(jobs); running.Wait() },
	}
}

// must panics on an error, after which a figure would mean nothing.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
