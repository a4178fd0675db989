package main

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// A load describes one measurement.
type load struct {
	job       *job
	jobs      int
	producers int
	workers   int
	open      int // handles that a producer keeps open before it waits for the oldest
}

// places is the length of the queue of contenders that have one.
const places = 1024

// A sample is the result of one measurement, per job.
type sample struct{ NS, Allocs float64 }

// measure runs one load on a new pool. It measures from the first submit until the
// last job has ended.
//
// Jobs do not count themselves: on two cores, a shared counter would cost as much as
// half a channel operation, and an empty job would not be empty.
func measure(c contender, l load) sample {
	p := c.open(l.workers, places)
	hold(p, l.workers)() // start all workers
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	begin := time.Now()
	share := max(l.jobs/l.producers, 1)
	var producers sync.WaitGroup
	for range l.producers {
		producers.Go(func() { produce(p, l.job, share, l.open) })
	}
	producers.Wait()
	release := drain(p, l.workers)
	elapsed := time.Since(begin)

	runtime.ReadMemStats(&after)
	release()
	p.close()
	n := float64(share * l.producers)
	return sample{NS: float64(elapsed) / n, Allocs: float64(after.Mallocs-before.Mallocs) / n}
}

func produce(p pool, j *job, n, open int) {
	handles := make([]any, min(open, n))
	for i := range n {
		if open == 0 {
			p.submit(j)
			continue
		}
		oldest := &handles[i%len(handles)]
		if *oldest != nil {
			p.wait(*oldest)
		}
		*oldest = p.submit(j)
	}
	for _, h := range handles {
		p.wait(h)
	}
}

// drain blocks until all earlier jobs have ended, and then occupies all workers until
// release is called. Jobs start in order, so once later jobs occupy all workers, the
// earlier ones have ended.
func drain(p pool, workers int) (release func()) {
	if p.flush != nil {
		p.flush()
	}
	return hold(p, workers)
}

// hold occupies all workers until release is called.
func hold(p pool, workers int) (release func()) {
	var begun, ended sync.WaitGroup
	begun.Add(workers)
	ended.Add(workers)
	gate := make(chan struct{})
	j := newJob(func() {
		begun.Done()
		<-gate
		ended.Done()
	})
	for range workers {
		p.submit(j)
	}
	begun.Wait()
	return func() { close(gate); ended.Wait() }
}

// interleave runs n entries in rounds, A B C, then B C A, so that disturbances of the
// machine affect all alike. The result has one outcome per round for each entry.
func interleave[T any](rounds, n int, run func(entry int) T) [][]T {
	out := make([][]T, n)
	for r := range rounds {
		for i := range n {
			entry := (i + r) % n
			out[entry] = append(out[entry], run(entry))
		}
	}
	return out
}

// each returns f(a, b) for each round.
func each[T any](a, b []T, f func(a, b T) float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = f(a[i], b[i])
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// busy returns a job that computes for d. It neither sleeps nor reads the clock, which
// would cost as much as what is measured.
func busy(d time.Duration) *job {
	const probe = 1 << 20
	best := time.Hour // the least disturbed
	for range 10 {
		begin := time.Now()
		runtime.KeepAlive(spin(probe))
		best = min(best, time.Since(begin))
	}
	n := int(probe * d / best)
	return newJob(func() { runtime.KeepAlive(spin(n)) })
}

// freeCores returns the number of cores that this process can use. If another process
// keeps some busy, the contention between goroutines is not the usual one, and the
// figures mean little.
func freeCores() float64 {
	const n = 1 << 28
	cores := runtime.GOMAXPROCS(0)
	begin := time.Now()
	runtime.KeepAlive(spin(n))
	one := time.Since(begin)
	begin = time.Now()
	var all sync.WaitGroup
	for range cores {
		all.Go(func() { runtime.KeepAlive(spin(n)) })
	}
	all.Wait()
	return float64(cores) * float64(one) / float64(time.Since(begin))
}

//go:noinline
func spin(n int) uint64 {
	x := uint64(1)
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// A footprint is the memory of queued jobs.
type footprint struct {
	Bytes      float64 // per job, without its closure
	Goroutines int
}

// weigh measures jobs that are submitted while all workers are occupied. It never
// releases them, so call it only at the end of a process.
func weigh(c contender, workers, waiting int) footprint {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()

	p := c.open(workers, waiting)
	hold(p, workers)
	never := make(chan struct{})
	j := newJob(func() { <-never })
	for range waiting {
		p.submit(j)
	}
	for n := -1; n != runtime.NumGoroutine(); { // old dispatch may still be taking jobs from the queue
		n = runtime.NumGoroutine()
		time.Sleep(100 * time.Millisecond)
	}

	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)
	footprint := footprint{float64(used) / float64(waiting), runtime.NumGoroutine() - goroutines}
	runtime.KeepAlive(p)
	return footprint
}
