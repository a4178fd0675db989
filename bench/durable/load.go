package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// patience is how long a load may last beyond its time. A server that has not
	// answered by then is broken.
	patience = 30 * time.Second

	// maxAnswer bounds the body of an answer.
	maxAnswer = 64 << 10
)

// The request that every contender gets, with a body of 100 bytes.
var (
	body = strings.Repeat("0123456789", 10)
	post = fmt.Appendf(nil, "POST /work HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
)

// A conn is a connection that is kept alive, with one request at a time. It is no
// [net/http.Client], since that takes more CPU time than the servers that are measured
// here, and on a machine with few cores all of them would look alike.
type conn struct {
	net.Conn
	r      *bufio.Reader
	answer answer
}

// An answer is valid until the next request.
type answer struct {
	status   int
	location []byte
	body     []byte
}

// do sends a request and reads the answer.
func (c *conn) do(request []byte) (*answer, error) {
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	a := &c.answer
	a.location = a.location[:0]
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return nil, fmt.Errorf("the answer begins with %q; want HTTP/1.1 and a status", line)
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return nil, fmt.Errorf("the answer begins with %q; want a status", line)
	}
	length, err := c.header()
	if err != nil {
		return nil, err
	}
	a.body = slices.Grow(a.body[:0], length)[:length]
	_, err = io.ReadFull(c.r, a.body)
	return a, err
}

// header reads the header. It returns the length of the body.
func (c *conn) header() (length int, err error) {
	length = -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, fmt.Errorf("the answer has the Content-Length %q", value)
			}
		case bytes.EqualFold(name, []byte("Location")):
			c.answer.location = append(c.answer.location, value...)
		}
	}
	if length < 0 || length > maxAnswer {
		return 0, fmt.Errorf("the answer has status %d and Content-Length %d; want 0 to %d", c.answer.status, length, maxAnswer)
	}
	return length, nil
}

// accept is a client that wants its job accepted.
func accept(c *conn) error {
	a, err := c.do(post)
	if err == nil && a.status != 202 {
		err = fmt.Errorf("POST /work is answered with %d %q; want 202", a.status, a.body)
	}
	return err
}

// acceptAndRead is a client that also waits for the result, with long polls.
func acceptAndRead(c *conn) error {
	if err := accept(c); err != nil {
		return err
	}
	get := fmt.Appendf(nil, "GET %s/response HTTP/1.1\r\nHost: bench\r\nPrefer: wait=10\r\n\r\n", c.answer.location)
	for {
		a, err := c.do(get)
		switch {
		case err != nil:
			return err
		case a.status == 202: // not yet
		case a.status != 200 || string(a.body) != outcome:
			return fmt.Errorf("the result is %d %q; want 200 %q", a.status, a.body, outcome)
		default:
			return nil
		}
	}
}

// A result is what came of a load.
type result struct {
	rate float64         // answers a second
	took []time.Duration // sorted
	late []time.Duration // sorted; of an open loop, how long after it was due a request was sent
}

// at returns the percentile q of the times in milliseconds.
func (r result) at(q float64) float64 { return milliseconds(percentile(r.took, q)) }

// closedLoop runs clients, each of which sends its next request when it has the answer
// to the last one. What ends within lasts, after warm, counts. Where that is nothing, it
// is the answer that each client has waited for by then.
func closedLoop(ctx context.Context, addr string, clients int, warm, lasts time.Duration, once func(*conn) error) (result, error) {
	took := make([][]time.Duration, clients)
	final := make([]time.Duration, clients)
	var begin time.Time
	err := connected(ctx, addr, clients, warm+lasts, func() { begin = time.Now() }, func(i int, c *conn) error {
		for sent := begin; ; {
			if err := once(c); err != nil {
				return err
			}
			now := time.Now()
			since := now.Sub(begin)
			if since >= warm+lasts {
				final[i] = now.Sub(sent)
				return nil
			}
			if since >= warm {
				took[i] = append(took[i], now.Sub(sent))
			}
			sent = now
		}
	})
	all := slices.Concat(took...)
	if len(all) == 0 {
		all, lasts = final, time.Since(begin)
	}
	slices.Sort(all)
	return result{rate: float64(len(all)) / lasts.Seconds(), took: all}, err
}

// openConns is how many requests of an open loop are under way at once. What is due
// beyond that waits, and its time runs.
const openConns = 64

// openLoop sends requests when they are due, whatever became of those before. Their
// times count from when they were due. What is due within lasts, after warm, counts.
func openLoop(ctx context.Context, addr string, rate float64, warm, lasts time.Duration, once func(*conn) error) (result, error) {
	due := schedule(rate, warm+lasts)
	type times struct{ took, late time.Duration }
	found := make([][]times, openConns)
	requests := make(chan time.Duration, len(due)) // sent to by pace, which closes it
	var begin time.Time
	start := func() {
		begin = time.Now()
		go pace(begin, due, requests)
	}
	err := connected(ctx, addr, openConns, warm+lasts, start, func(i int, c *conn) error {
		for at := range requests {
			late := time.Since(begin) - at
			if err := once(c); err != nil {
				return err
			}
			if at >= warm {
				found[i] = append(found[i], times{time.Since(begin) - at, late})
			}
		}
		return nil
	})
	var r result
	for _, t := range slices.Concat(found...) {
		r.took, r.late = append(r.took, t.took), append(r.late, t.late)
	}
	slices.Sort(r.took)
	slices.Sort(r.late)
	r.rate = float64(len(r.took)) / lasts.Seconds()
	if err == nil && len(r.took) == 0 {
		err = fmt.Errorf("no request was due within %v at %.1f a second", lasts, rate)
	}
	return r, err
}

// schedule returns when the requests of a Poisson process are due. It is the same in
// every run.
func schedule(rate float64, lasts time.Duration) []time.Duration {
	random := rand.New(rand.NewPCG(1, 0))
	var due []time.Duration
	for at := random.ExpFloat64() / rate; at < lasts.Seconds(); at += random.ExpFloat64() / rate {
		due = append(due, time.Duration(at*float64(time.Second)))
	}
	return due
}

// pace sends each request when it is due, and then closes requests. It sleeps in a
// thread of its own, since a sleep of the runtime may end a millisecond late.
func pace(begin time.Time, due []time.Duration, requests chan<- time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(requests)
	for _, at := range due {
		for left := at - time.Since(begin); left > 0; left = at - time.Since(begin) {
			sleep(left)
		}
		requests <- at
	}
}

// connected opens connections and, when all are open, calls start and then run for each
// of them at once. If one fails or ctx ends, the others are closed.
func connected(ctx context.Context, addr string, n int, lasts time.Duration, start func(), run func(i int, c *conn) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conns := make([]*conn, n)
	for i := range conns {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(lasts + patience)); err != nil {
			return err
		}
		conns[i] = &conn{Conn: c, r: bufio.NewReader(c)}
	}
	defer context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})()
	start()
	var clients sync.WaitGroup
	for i, c := range conns {
		clients.Go(func() {
			if err := run(i, c); err != nil {
				cancel(err) // the first counts; the others fail since it closes their connections
			}
		})
	}
	clients.Wait()
	if err := context.Cause(ctx); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the server closes the connection: %w", err)
		}
		return err
	}
	return nil
}
