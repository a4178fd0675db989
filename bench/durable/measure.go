package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
	"time"
)

// A comparison is one run of the command.
type comparison struct {
	*options
	dir  string
	list []contender
	bars bars
}

// A sample is the result of one measurement. Which fields are set depends on the part.
type sample struct {
	rate     float64 // answers or jobs a second, or the load
	p50, p99 float64 // ms
	alone    float64 // ms, the median of one job alone

	syncP50, syncP99 float64 // ms, of an fsync in the same folder
	late             float64 // ms, the 99th percentile of how late the generator sent
}

// A series has a sample of one contender for each round.
type series []sample

// measure measures the parts, in order.
func (c *comparison) measure(ctx context.Context, out io.Writer) error {
	measure := map[string]func(context.Context, io.Writer) error{
		"accept":  c.measureAccept,
		"waiting": c.measureWaiting,
		"end":     c.measureEnd,
		"half":    c.measureHalf,
	}
	for _, part := range partNames {
		if !slices.Contains(c.parts, part) {
			continue
		}
		if err := measure[part](ctx, out); err != nil {
			return err
		}
	}
	c.bars.print(out)
	return nil
}

func (c *comparison) measureAccept(ctx context.Context, out io.Writer) error {
	found, err := c.accepts(ctx, workers, "accept")
	if err != nil {
		return err
	}
	c.bars.accept(c, found)
	c.printAccepts(out, fmt.Sprintf("Accepts a second, while %d workers run the jobs", workers), found)
	return nil
}

func (c *comparison) measureWaiting(ctx context.Context, out io.Writer) error {
	found, err := c.accepts(ctx, 0, "accept, no worker")
	if err != nil {
		return err
	}
	c.printAccepts(out, "Accepts a second, while all jobs wait", found)
	return nil
}

// accepts measures how many jobs are accepted, for each number of clients.
func (c *comparison) accepts(ctx context.Context, workers int, title string) (found [][]series, err error) {
	for _, clients := range c.clients {
		s, err := c.rounds(ctx, title+", "+count(clients, "client"), func(ctx context.Context, e contender) (s sample, err error) {
			err = c.with(ctx, e, workers, func(addr string) error {
				r, err := closedLoop(ctx, addr, clients, c.warm(), c.lasts, accept)
				s = sample{rate: r.rate, p50: r.at(0.5), p99: r.at(0.99)}
				return err
			})
			return s, err
		})
		if err != nil {
			return nil, err
		}
		found = append(found, s)
	}
	return found, nil
}

// measureEnd measures from the request to the result that the client has read.
func (c *comparison) measureEnd(ctx context.Context, out io.Writer) error {
	found, err := c.rounds(ctx, fmt.Sprintf("to the end, %d clients", workers), func(ctx context.Context, e contender) (s sample, err error) {
		err = c.with(ctx, e, workers, func(addr string) error {
			one, err := closedLoop(ctx, addr, 1, c.warm()/2, c.lasts/2, acceptAndRead)
			if err != nil {
				return err
			}
			r, err := closedLoop(ctx, addr, workers, c.warm(), c.lasts, acceptAndRead)
			s = sample{rate: r.rate, p50: r.at(0.5), p99: r.at(0.99), alone: one.at(0.5)}
			return err
		})
		return s, err
	})
	if err != nil {
		return err
	}
	c.bars.end(c, found)
	c.printEnd(out, found)
	return nil
}

// measureHalf measures accepts at half of the rate that 64 clients have just reached.
// That rate is found on a server of its own: the jobs that it leaves would run beside
// the measurement.
func (c *comparison) measureHalf(ctx context.Context, out io.Writer) error {
	found, err := c.rounds(ctx, "accept at half load", func(ctx context.Context, e contender) (s sample, err error) {
		var full result
		err = c.with(ctx, e, workers, func(addr string) (err error) {
			full, err = closedLoop(ctx, addr, 64, c.warm(), c.lasts/2, accept)
			return err
		})
		if err != nil {
			return s, err
		}
		return c.atLoad(ctx, e, full.rate/2)
	})
	if err != nil {
		return err
	}
	c.bars.half(c, found)
	c.printHalf(out, found)
	return nil
}

// maxSlow bounds the time of a measurement that has few requests.
const maxSlow = 10 * time.Second

// atLoad measures accepts at a load, and fsyncs in the same folder before and after.
func (c *comparison) atLoad(ctx context.Context, e contender, rate float64) (s sample, err error) {
	const syncs = 200
	before, err := syncTimes(c.dir, syncs)
	if err != nil {
		return s, err
	}
	err = c.with(ctx, e, workers, func(addr string) error {
		// A slow one gets ten requests as well.
		lasts := max(c.lasts, min(time.Duration(10/rate*float64(time.Second)), maxSlow))
		r, err := openLoop(ctx, addr, rate, c.warm(), lasts, accept)
		s = sample{rate: rate, p50: r.at(0.5), p99: r.at(0.99), late: milliseconds(percentile(r.late, 0.99))}
		return err
	})
	if err != nil {
		return s, err
	}
	after, err := syncTimes(c.dir, syncs)
	both := slices.Sorted(slices.Values(append(before, after...)))
	s.syncP50, s.syncP99 = milliseconds(percentile(both, 0.5)), milliseconds(percentile(both, 0.99))
	return s, err
}

// rounds measures all contenders in rounds, A B C, then B C A, so that disturbances of
// the machine affect all alike. An error names the contender.
func (c *comparison) rounds(ctx context.Context, title string, one func(context.Context, contender) (sample, error)) ([]series, error) {
	log.Print(title)
	found := make([]series, len(c.list))
	for r := range c.options.rounds {
		for i := range c.list {
			entry := (i + r) % len(c.list)
			s, err := one(ctx, c.list[entry])
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", c.list[entry].name, title, err)
			}
			found[entry] = append(found[entry], s)
		}
	}
	return found, nil
}

// with starts a contender in a new folder, calls f with its address, and removes both.
func (c *comparison) with(ctx context.Context, e contender, workers int, f func(addr string) error) error {
	dir, err := os.MkdirTemp(c.dir, "data-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	p, err := launch(ctx, e, dir, workers)
	if err != nil {
		return err
	}
	// An fsync also waits for what others have written before, such as the files of a
	// new database.
	exec.CommandContext(ctx, "sync").Run()
	err = f(p.addr)
	if ended := p.end(); err == nil {
		err = ended
	}
	return err
}

// percentile returns the smallest of the sorted times that a share q of them does not
// exceed; 0 if there are none.
func percentile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(q*float64(len(sorted)) + 0.999999) // rounded up, but for what floating point adds
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// of returns one figure of each round.
func (s series) of(figure func(sample) float64) []float64 {
	var v []float64
	for _, one := range s {
		v = append(v, figure(one))
	}
	return v
}

func rate(s sample) float64 { return s.rate }

// over returns the ratio of two figures in each round.
func over(a, b []float64) []float64 {
	var v []float64
	for i := range a {
		v = append(v, a[i]/b[i])
	}
	return v
}
