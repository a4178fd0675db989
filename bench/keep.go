package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/store"
)

// This file compares ways to keep the results of jobs. Each records that a job is
// accepted, starts and ends, keeps the last kept jobs, and finds them by id.

const kept = 100_000

type keeper interface {
	job() (id store.ID) // records one job, from acceptance to end
	find(id store.ID) bool
}

// answer is the response of each job, the one of /aaa.
var answer = func() exchange.Response {
	var x exchange.Exchange
	x.Capture(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "17")
		io.WriteString(w, "{\"sleep_time\":1}\n")
	}), httptest.NewRequest("POST", "/aaa", nil), nil, 1<<20)
	must(x.Serve(context.Background()))
	return x.Response()
}()

// holdfastStore is the store of Holdfast: a log of bytes with an index.
type holdfastStore struct{ *store.Store }

func newHoldfastStore() keeper {
	return holdfastStore{store.New(store.Bounds{Jobs: kept, Bytes: 1 << 40, Age: time.Hour})}
}

func (s holdfastStore) job() store.ID {
	j := store.NewJob(store.NewID(), nil, store.Request{})
	s.Add(j, nil)
	must(s.Accept(j))
	s.Start(j)
	s.End(j, store.Outcome{State: store.Done, Response: answer})
	return j.ID
}

func (s holdfastStore) find(id store.ID) bool {
	_, ok := s.Lookup(id.String())
	return ok
}

// A keptJob is a record, allocated separately from its response.
type keptJob struct {
	mu                       sync.Mutex
	id                       store.ID
	accepted, started, ended time.Time
	state                    store.State
	response                 []byte
	next                     *keptJob
}

func (j *keptJob) run() {
	j.mu.Lock()
	j.state, j.started = store.Running, time.Now()
	j.mu.Unlock()
	j.mu.Lock()
	j.state, j.ended, j.response = store.Done, time.Now(), answer.Append(nil)
	j.mu.Unlock()
}

// shardedMap keeps records in maps, each with its own lock and list of ended jobs.
type shardedMap struct{ shards [64]mapShard }

type mapShard struct {
	mu             sync.Mutex
	jobs           map[store.ID]*keptJob
	oldest, newest *keptJob
	n              int
	_              [64]byte
}

func newShardedMap() keeper {
	m := new(shardedMap)
	for i := range m.shards {
		m.shards[i].jobs = make(map[store.ID]*keptJob)
	}
	return m
}

func (m *shardedMap) job() store.ID {
	j := &keptJob{id: store.NewID(), state: store.Queued, accepted: time.Now()}
	s := &m.shards[j.id[0]%64]
	s.mu.Lock()
	s.jobs[j.id] = j
	s.mu.Unlock()
	j.run()
	s.mu.Lock()
	if s.newest == nil {
		s.oldest = j
	} else {
		s.newest.next = j
	}
	s.newest = j
	if s.n++; s.n > kept/64 {
		delete(s.jobs, s.oldest.id)
		s.oldest = s.oldest.next
		s.n--
	}
	s.mu.Unlock()
	return j.id
}

func (m *shardedMap) find(id store.ID) bool {
	s := &m.shards[id[0]%64]
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.jobs[id]
	return ok
}

// slotRing has a fixed number of slots, and the id contains the slot. It needs no map,
// but an id reveals how many jobs there were.
type slotRing struct {
	mu    sync.Mutex
	slots []*keptJob
	next  int
}

func newSlotRing() keeper { return &slotRing{slots: make([]*keptJob, kept)} }

func (r *slotRing) job() store.ID {
	j := &keptJob{id: store.NewID(), state: store.Queued, accepted: time.Now()}
	r.mu.Lock()
	binary.LittleEndian.PutUint32(j.id[:], uint32(r.next)) // a real one would have to skip slots of jobs that still run
	r.slots[r.next] = j
	r.next = (r.next + 1) % len(r.slots)
	r.mu.Unlock()
	j.run()
	return j.id
}

func (r *slotRing) find(id store.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.slots[int(binary.LittleEndian.Uint32(id[:]))%len(r.slots)]
	return j != nil && j.id == id
}

// compareKeepers measures the keepers when they are full, including the work of the
// garbage collector.
func compareKeepers(jobs int) {
	keepers := []struct {
		name string
		make func() keeper
	}{
		{"log of bytes with an index (Holdfast)", newHoldfastStore},
		{"sharded map", newShardedMap},
		{"ring, the id contains the slot", newSlotRing},
	}
	found := interleave(*rounds, len(keepers), func(e int) keeping { return measureKeeper(keepers[e].make, jobs) })
	fmt.Printf("\n### Keeping %d ended jobs\n\n", kept)
	fmt.Print("| | ns per job | ns per lookup | µs per garbage collection | bytes per kept job |\n|---|---|---|---|---|\n")
	for i, k := range keepers {
		of := func(pick func(keeping) float64) float64 {
			return median(each(found[i], found[i], func(f, _ keeping) float64 { return pick(f) }))
		}
		fmt.Printf("| %s | %.0f | %.0f | %.0f | %.0f |\n", k.name, of(func(f keeping) float64 { return f.job }), of(func(f keeping) float64 { return f.find }),
			of(func(f keeping) float64 { return f.collect }), of(func(f keeping) float64 { return f.bytes }))
	}
}

// A keeping is what a keeper costs: ns per job and lookup, µs per garbage collection,
// bytes per kept job.
type keeping struct{ job, find, collect, bytes float64 }

func measureKeeper(open func() keeper, jobs int) keeping {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	k := open()
	for range kept {
		k.job()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	f := keeping{bytes: float64(after.HeapAlloc-before.HeapAlloc) / kept}
	begin := time.Now()
	both(func(int) {
		for range jobs / 2 {
			k.job()
		}
	})
	f.job = float64(time.Since(begin).Nanoseconds()) / float64(jobs)
	// The jobs above cannot be looked up: if one goroutine ends earlier than the
	// other, its last jobs may be evicted already.
	ids := make([][]store.ID, 2)
	for i := range kept / 4 {
		ids[i%2] = append(ids[i%2], k.job())
	}
	begin = time.Now()
	both(func(g int) {
		for _, id := range ids[g] {
			if !k.find(id) {
				panic("a kept job is not found")
			}
		}
	})
	f.find = float64(time.Since(begin).Nanoseconds()) / (kept / 4)
	ids = nil
	begin = time.Now()
	runtime.GC()
	f.collect = float64(time.Since(begin).Microseconds())
	runtime.KeepAlive(k)
	return f
}

func both(f func(g int)) {
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() { f(g) })
	}
	wg.Wait()
}
