package main

import (
	"context"
	"fmt"
	"log"
	"sync/atomic"
	"time"
)

// A measurement is one contender under one load.
type measurement struct {
	Contender string
	Service   string
	Load      float64   // offered, in the capacity of the upstream; 0 around the burst
	Capacity  float64   // calls a second
	Classes   []summary // the first is all of them

	// Calls that the upstream has done, and those of them whose client had left at
	// their end: work done for nobody.
	Calls, Vain int64
	Faults      map[string]int // failed requests by what was wrong
	MemoryMiB   float64        // the most that the contender had, where it is a process of its own
	Generator   health

	Burst *burst `json:",omitempty"` // nil if the load is even
}

// A burst is what became of the requests around one.
type burst struct {
	Before, In, After summary
	Seconds           []second
	Recovered         int // seconds from its end until the service was as before; -1: never
}

// The load before and after the burst, and in every warm-up; that of the burst;
// and how much longer than it the time after it is looked at.
const calm, flood, afterBurst = 0.5, 5, 2

// A course is a load over time, in the capacity of the upstream.
type course []struct {
	load  float64
	lasts time.Duration
}

// steady is the course of an even load. Before it counts, the calm lets connections
// be made and the contenders learn what a call takes, and then the load fills the
// queues: what is counted is how it goes on, and not the first second, in which
// nobody has waited yet.
func (o *options) steady(load float64) course {
	return course{{calm, o.warm}, {load, o.warm}, {load, o.lasts}}
}

// around is the course around a burst. The calm before it counts as well.
func (o *options) around() course {
	return course{{calm, o.warm}, {calm, o.lasts}, {flood, o.lasts}, {calm, afterBurst * o.lasts}}
}

func (c course) phases(capacity float64) []phase {
	var phases []phase
	for _, p := range c {
		phases = append(phases, phase{p.load * capacity, p.lasts})
	}
	return phases
}

// measure starts an upstream and the contender before it, both new, so that
// nothing is left of the load before. What is due from a time on counts. It returns
// the samples too.
func (o *options) measure(ctx context.Context, dir string, c contender, s service, plan course, from time.Duration) (measurement, []sample, error) {
	rate := capacity(s, o.serviceTime, o.slots)
	phases := plan.phases(rate)
	arrivals := schedule(o.seed, phases, o.mix, o.constant)
	first := 0
	for first < len(arrivals) && arrivals[first].due < from {
		first++
	}
	m := newMachine(s, o.serviceTime, o.seed, o.slots, o.stops, make([]atomic.Bool, len(arrivals)), first)
	upstream, end, err := m.start()
	if err != nil {
		return measurement{}, nil, err
	}
	defer end()
	p, err := c.start(ctx, dir, upstream, o.limit(rate))
	if err != nil {
		return measurement{}, nil, fmt.Errorf("%s: %w", c.name, err)
	}
	defer p.end()

	t := newTarget(ctx, &target{url: p.url, method: "GET", clientHeader: o.clientHeader, gone: func(request int) { m.gone[request].Store(true) }})
	samples, h := t.send(arrivals, o.mix, o.maxOpen)
	return measurement{
		Contender: c.name, Service: s.name, Capacity: rate,
		Classes: summarize(samples, o.mix, window{from, length(phases)}),
		Calls:   m.calls.Load(), Vain: m.vain.Load(), Faults: t.faults, MemoryMiB: p.peakMiB(), Generator: h,
	}, samples, ctx.Err()
}

// compareLoads measures every contender under every load; all under one before any
// under the next, so that a phase of the machine hits all alike.
func (o *options) compareLoads(ctx context.Context, dir string, list []contender, s service) ([]measurement, error) {
	var found []measurement
	for _, load := range o.loads {
		for _, c := range list {
			log.Printf("%s, %gx: %s", s.name, load, c.name)
			m, _, err := o.measure(ctx, dir, c, s, o.steady(load), 2*o.warm)
			if err != nil {
				return nil, err
			}
			m.Load = load
			found = append(found, m)
		}
	}
	return found, nil
}

// compareBurst measures every contender around a burst.
func (o *options) compareBurst(ctx context.Context, dir string, list []contender, s service) ([]measurement, error) {
	var found []measurement
	begin, end := o.warm+o.lasts, o.warm+2*o.lasts
	for _, c := range list {
		log.Printf("%s, burst: %s", s.name, c.name)
		m, samples, err := o.measure(ctx, dir, c, s, o.around(), o.warm)
		if err != nil {
			return nil, err
		}
		before := summarize(samples, o.mix, window{o.warm, begin})[0]
		usual := time.Duration(before.P99 * float64(time.Second))
		list := bySecond(samples, window{o.warm, end + afterBurst*o.lasts}, usual)
		m.Burst = &burst{
			Before: before, In: summarize(samples, o.mix, window{begin, end})[0],
			After:   summarize(samples, o.mix, window{end, end + afterBurst*o.lasts})[0],
			Seconds: list, Recovered: recovery(list, int((end-o.warm)/time.Second)),
		}
		found = append(found, m)
	}
	return found, nil
}
