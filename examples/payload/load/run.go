package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A load describes what one run sends.
type load struct {
	count       int // payloads
	connections int
	limit       time.Duration
}

// A result holds the measurements of one run.
type result struct {
	title         string
	answered      int // with 2xx
	took          time.Duration
	p50, p99, max time.Duration // of the answers with 2xx
	peak          float64       // bytes of memory; 0 if unknown
	ended         string        // how the process ended
	lost, twice   int           // payloads: answered with 2xx and not stored; stored more than once
}

func (r result) rate() float64 { return float64(r.answered) / r.took.Minutes() }

const stopLimit = 2 * time.Minute // from SIGTERM to the end of a process

// run starts a server, sends it a load and stops it. latency has the time to the 2xx
// answer for each payload, or 0 if there was none.
func run(ctx context.Context, l load, command ...string) (r result, latency []time.Duration, err error) {
	cmd, addr, logged, err := start(command)
	if err != nil {
		return r, nil, err
	}
	peak, ended := make(chan float64, 1), make(chan struct{})
	go func() { peak <- watch(cmd.Process.Pid, ended) }()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(stopLimit, func() { cmd.Process.Kill() })
		<-logged // before Wait, which closes the pipe
		cmd.Wait()
		kill.Stop()
		close(ended)
		r.peak, r.ended = <-peak, cmd.ProcessState.String()
	}

	sent := sent{latency: make([]time.Duration, l.count)}
	select {
	case a := <-addr:
		ctx, cancel := context.WithTimeout(ctx, l.limit)
		begin := time.Now()
		sent.all(ctx, a, l)
		r.took = time.Since(begin)
		cancel()
	case <-logged:
	case <-ctx.Done():
	}
	stop()
	if ctx.Err() != nil {
		return r, nil, ctx.Err()
	}
	err = r.setLatency(sent.latency)
	return r, sent.latency, err
}

// start starts a server. It sends the server's address to addr, and closes logged when
// the server has ended.
func start(command []string) (cmd *exec.Cmd, addr chan string, logged chan struct{}, err error) {
	cmd = exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=load", "AWS_SECRET_ACCESS_KEY=load", "AWS_REGION=us-east-1")
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, err
	}
	addr, logged = make(chan string, 1), make(chan struct{})
	go func() {
		defer close(logged)
		follow(out, addr)
	}()
	return cmd, addr, logged, nil
}

// setLatency sets the fields that describe the 2xx answers.
func (r *result) setLatency(latency []time.Duration) error {
	accepted := slices.DeleteFunc(slices.Clone(latency), func(d time.Duration) bool { return d == 0 })
	if len(accepted) == 0 {
		return fmt.Errorf("no payload was accepted; the process: %s", r.ended)
	}
	slices.Sort(accepted)
	last := len(accepted) - 1
	r.answered, r.p50, r.p99, r.max = len(accepted), accepted[last/2], accepted[last*99/100], accepted[last]
	return nil
}

// against compares the stored payloads with the answered ones.
func (r *result) against(stored tally, latency []time.Duration) {
	for n, times := range stored.times {
		if times == 0 && latency[n] > 0 {
			r.lost++
		}
		if times > 1 {
			r.twice++
		}
	}
}

// follow forwards the first lines of a server's log, and sends its address to addr.
func follow(from io.Reader, addr chan<- string) {
	listens := regexp.MustCompile(` addr=(\S+)`)
	lines := bufio.NewScanner(from)
	for n := 0; lines.Scan(); n++ {
		switch m := listens.FindStringSubmatch(lines.Text()); {
		case m != nil:
			addr <- m[1]
		case n < 20: // after a crash, the stacks of all goroutines follow
			log.Print("  ", lines.Text())
		}
	}
	io.Copy(io.Discard, from)
}

// watch returns the peak memory of a process. It works on Linux only.
func watch(pid int, ended <-chan struct{}) (peak float64) {
	highest := regexp.MustCompile(`VmHWM:\s+(\d+) kB`)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return peak
		case <-tick.C:
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if m := highest.FindSubmatch(text); m != nil {
				kib, _ := strconv.ParseFloat(string(m[1]), 64)
				peak = kib * 1024
			}
		}
	}
}

// sent records the time to the 2xx answer for each payload, or 0.
type sent struct {
	latency []time.Duration
	next    atomic.Int64 // the next payload to send
	failed  sync.Once    // logs only the first failure
}

// all sends until every payload has an answer, ctx ends, or the server is gone.
func (s *sent) all(ctx context.Context, addr string, l load) {
	var connections sync.WaitGroup
	for range l.connections {
		connections.Go(func() {
			for ctx.Err() == nil && s.next.Load() < int64(l.count) {
				conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
				if err != nil {
					s.failed.Do(func() { log.Print("  ", err) })
					return
				}
				halt := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
				if err := s.some(conn); err != nil {
					s.failed.Do(func() { log.Print("  ", err) })
				}
				halt()
				conn.Close()
			}
		})
	}
	connections.Wait()
}

// some sends over one connection until it fails or nothing is left. It writes HTTP by
// hand, to leave as much CPU time as possible to the server.
func (s *sent) some(conn net.Conn) error {
	from := bufio.NewReader(conn)
	var body, request []byte
	for {
		n := s.next.Add(1) - 1
		if n >= int64(len(s.latency)) {
			return nil
		}
		body = fmt.Appendf(body[:0], `{"version":"1","token":"load","data":[`+format+`]}`, n)
		request = fmt.Appendf(request[:0], "POST /payload HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		begin := time.Now()
		if _, err := conn.Write(request); err != nil {
			return err
		}
		answer, err := http.ReadResponse(from, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return err
		}
		if answer.StatusCode/100 != 2 {
			return fmt.Errorf("answer %s", answer.Status)
		}
		s.latency[n] = time.Since(begin)
	}
}
