package patience

import (
	"math"
	"sync"
	"time"
)

// Ages fall into buckets, each 2 % wider than the one before, from youngest to about
// nine minutes.
const (
	perOctave = 32
	buckets   = 19 * perOctave
	youngest  = time.Millisecond
)

const (
	halfLife = time.Minute // of an observation

	// enough is how many must have left. Fewer may have had reasons of their own.
	enough = 8

	// Least is the shortest patience that is believed. Somebody who connects and leaves
	// at once, again and again, must not make a queue refuse all who have to wait.
	Least = 100 * time.Millisecond
)

// Departures learn how long clients wait from those who leave. A client that got its
// answer has shown that it waits at least so long, and nothing of how much longer it
// would have: the estimate is the product-limit one of such observations. Were the
// answered simply counted against those who left, many quick answers would hide that
// nobody waits for long.
//
// The zero Departures know nothing. Their methods may be called by any number of
// goroutines at once.
type Departures struct {
	mu           sync.Mutex // protects the following fields
	left, stayed [buckets]float64
	changed      bool
	patience     time.Duration // 0: not known
	made         time.Time     // when patience was
	decayed      time.Time     // until when left and stayed are decayed
}

// Left tells that a client left when its request was so old.
func (d *Departures) Left(age time.Duration) { d.add(&d.left, age) }

// Stayed tells that a client was there when its request was so old.
func (d *Departures) Stayed(age time.Duration) { d.add(&d.stayed, age) }

func (d *Departures) add(to *[buckets]float64, age time.Duration) {
	i := math.Log2(float64(max(age, youngest))/float64(youngest)) * perOctave
	d.mu.Lock()
	d.decay(time.Now())
	to[min(int(i), buckets-1)]++
	d.changed = true
	d.mu.Unlock()
}

// Patience returns the age that half of the clients reach, or 0 if that is not known:
// half, since those who leave while they wait cost nothing, and the queue need not be
// as short as the most impatient client wants it.
func (d *Departures) Patience() time.Duration {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if age := now.Sub(d.made); age >= time.Second || d.changed && age >= often {
		d.decay(now)
		d.patience, d.made, d.changed = d.estimate(), now, false
	}
	return d.patience
}

// decay lets what was observed until now count for less. It need not be more exact than
// to the second.
func (d *Departures) decay(now time.Time) {
	age := now.Sub(d.decayed)
	if age < time.Second {
		return
	}
	f := math.Exp2(-age.Seconds() / halfLife.Seconds())
	for i := range buckets {
		d.left[i] *= f
		d.stayed[i] *= f
	}
	d.decayed = now
}

func (d *Departures) estimate() time.Duration {
	present := 0.0 // at the age of a bucket
	for i := range buckets {
		present += d.left[i] + d.stayed[i]
	}
	left, share := 0.0, 1.0
	for i := range buckets {
		if d.left[i] > 0 {
			left += d.left[i]
			share *= 1 - d.left[i]/present
		}
		if share <= 0.5 && left >= enough {
			return max(time.Duration(float64(youngest)*math.Exp2(float64(i)/perOctave)), Least)
		}
		present -= d.left[i] + d.stayed[i]
	}
	return 0
}
