package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A service is how long a call of the upstream takes.
type service struct {
	name string
	mean float64 // in units of -service-time
	draw func(*rand.Rand) float64
}

var services = []service{
	{"exponential", 1, (*rand.Rand).ExpFloat64},
	{"fixed", 1, func(*rand.Rand) float64 { return 1 }},
	{"slow", 0.8 + 0.2*10, func(random *rand.Rand) float64 {
		if random.Float64() < 0.2 {
			return 10
		}
		return 1
	}},
}

// A machine is an upstream of a fixed capacity: so many calls run at once, and
// the others wait in it, first come, first served, however many a contender lets
// through. So every contender faces the same capacity, the bare one too.
//
// A call that has arrived is worked on whether its client is there or not, since
// most services look only when they write the answer. With stops it ends, or
// leaves the line, when its connection is closed.
type machine struct {
	service service
	unit    time.Duration
	seed    uint64
	stops   bool
	slots   chan struct{}

	first int           // requests before it are not counted
	gone  []atomic.Bool // by request: its client has left

	calls, vain atomic.Int64 // that were begun; and those whose client had left at their end

	closed context.Context
	server http.Server
	serves sync.WaitGroup
}

// newMachine returns a machine for as many requests as gone has, of which those
// before first are the warm-up.
func newMachine(s service, unit time.Duration, seed uint64, slots int, stops bool, gone []atomic.Bool, first int) *machine {
	return &machine{service: s, unit: unit, seed: seed, stops: stops, slots: make(chan struct{}, slots), gone: gone, first: first}
}

// capacity returns how many calls a second the machine can do.
func capacity(s service, unit time.Duration, slots int) float64 {
	return float64(slots) / (s.mean * unit.Seconds())
}

// start listens on loopback and returns the address and how to end it. A call that
// is under way then is cut off.
func (m *machine) start() (addr string, end func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	closed, cancel := context.WithCancel(context.Background())
	m.closed, m.server.Handler = closed, m
	m.serves.Go(func() { m.server.Serve(l) })
	return l.Addr().String(), func() {
		cancel()
		m.server.Close()
		m.serves.Wait()
	}, nil
}

// lasts returns how long the call for a request takes: the same behind every
// contender, and in every order.
func (m *machine) lasts(request int) time.Duration {
	random := rand.New(rand.NewPCG(m.seed, uint64(request)+1))
	return time.Duration(m.service.draw(random) * float64(m.unit))
}

func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, err := strconv.Atoi(r.Header.Get(idHeader))
	if err != nil || request < 0 || request >= len(m.gone) {
		http.Error(w, fmt.Sprintf("header %s is %q; want the number of a request", idHeader, r.Header.Get(idHeader)), http.StatusBadRequest)
		return
	}
	var departed <-chan struct{}
	if m.stops {
		departed = r.Context().Done()
	}
	select {
	case m.slots <- struct{}{}: // senders are served in order
	case <-departed:
		return
	case <-m.closed.Done():
		return
	}
	defer func() { <-m.slots }()
	timer := time.NewTimer(m.lasts(request))
	defer timer.Stop()
	vain := false
	select {
	case <-timer.C:
		vain = m.gone[request].Load()
	case <-departed:
		vain = true
	case <-m.closed.Done():
		return
	}
	if request >= m.first {
		m.calls.Add(1)
		if vain {
			m.vain.Add(1)
		}
	}
	io.WriteString(w, "done\n")
}
