package main

import (
	"context"
	"errors"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A stock is a set of counters, which any number of goroutines may change at once:
// added, sold, and those of the other outcomes and of all calls.
type stock interface {
	// add adds n to a counter and returns its value, in one step. A sale of more
	// than is left changes nothing and returns 0.
	add(counter string, n int) (int, error)
}

// counterNames are those that read returns.
var counterNames = []string{string(sold), "added", string(soldOut), string(refused), string(gone), "calls"}

// read returns the counters, and what remains. It reads one after the other, sales first:
// so what remains may be too much for a moment, but is never too little.
func read(s stock) (map[string]int, error) {
	counters := make(map[string]int)
	var failed error
	for _, name := range counterNames {
		n, err := s.add(name, 0)
		counters[name] = n
		failed = errors.Join(failed, err)
	}
	counters["remaining"] = counters["added"] - counters["sold"]
	return counters, failed
}

// A memoryStock is the stock of one process.
type memoryStock struct {
	mu       sync.Mutex // protects the following field
	counters map[string]int
}

func memory() stock {
	return &memoryStock{counters: map[string]int{"added": batch}}
}

func (s *memoryStock) add(counter string, n int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if counter == string(sold) && s.counters["sold"]+n > s.counters["added"] {
		return 0, nil
	}
	s.counters[counter] += n
	return s.counters[counter], nil
}

// A redisStock is one that several processes share. Redis runs a script as one step, so
// no lock is needed.
type redisStock struct{ client *redis.Client }

// redisKey is the hash that has the counters.
const redisKey = "flashsale"

var addScript = redis.NewScript(`
	local n = (redis.call('HGET', KEYS[1], ARGV[1]) or 0) + ARGV[2]
	if ARGV[1] == 'sold' and n > (redis.call('HGET', KEYS[1], 'added') or 0) + 0 then return 0 end
	return redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])`)

// shared returns the stock in the Redis server at addr. Only the first process adds the
// items of the start.
func shared(addr string) (stock, error) {
	// No retries: one could sell twice, if only the answer was lost.
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	return redisStock{client}, client.HSetNX(context.Background(), redisKey, "added", batch).Err()
}

func (s redisStock) add(counter string, n int) (int, error) {
	return addScript.Run(context.Background(), s.client, []string{redisKey}, counter, n).Int()
}
