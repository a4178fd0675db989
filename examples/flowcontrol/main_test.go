package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/proctest"
)

// asProgram, set in the environment, makes the test binary run as the program.
const asProgram = "FLOWCONTROL_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func start(t *testing.T, args ...string) *proctest.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return proctest.Launch(t, []string{asProgram + "=1"}, program, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
}

// A bubble holds the handler, and records which paths have begun, and when.
type bubble struct {
	http.Handler
	d *holdfast.Dispatcher

	mu    sync.Mutex
	begun []string
	at    map[string]time.Time
}

func newBubble(t *testing.T, workers int, work time.Duration) *bubble {
	b := &bubble{at: make(map[string]time.Time)}
	var err error
	if b.Handler, b.d, err = handler(workers, work, slog.New(slog.NewTextHandler(b, nil))); err != nil {
		t.Fatal(err)
	}
	return b
}

var begins = regexp.MustCompile(`msg=begins number=\d+ path=(\S+)`)

// Write receives a line of the log.
func (b *bubble) Write(line []byte) (int, error) {
	if match := begins.FindSubmatch(line); match != nil {
		b.mu.Lock()
		b.begun = append(b.begun, string(match[1]))
		b.at[string(match[1])] = time.Now()
		b.mu.Unlock()
	}
	return len(line), nil
}

// The request that has waited longest is dropped and answered at once. The others get
// their own responses, in order.
func TestOldestGivesWay(t *testing.T) {
	for _, workers := range []int{1, 3} {
		t.Run(strconv.Itoa(workers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const work, places = time.Second, 10
				b := newBubble(t, workers, work)
				answers := make([]*httptest.ResponseRecorder, workers+places+2)
				took := make([]time.Duration, len(answers))
				var all sync.WaitGroup
				for i := range answers {
					answers[i] = httptest.NewRecorder()
					all.Go(func() {
						began := time.Now()
						b.ServeHTTP(answers[i], httptest.NewRequest("GET", fmt.Sprintf("/%d", i), nil))
						took[i] = time.Since(began)
					})
					synctest.Wait()
					time.Sleep(time.Millisecond)
				}
				all.Wait()

				var want []string // paths that begin
				for i, a := range answers {
					path := fmt.Sprintf("/%d", i)
					if oldest := i - workers; oldest == 0 || oldest == 1 {
						// All places were taken when each of the last two requests arrived.
						if a.Code != 503 || a.Header().Get("Retry-After") == "" || !strings.Contains(a.Body.String(), "gave its place") {
							t.Errorf("%s: %d %v %s, want 503 for the request that has waited longest", path, a.Code, a.Header(), a.Body)
						}
						if took[i] != places*time.Millisecond { // that many arrived in between
							t.Errorf("%s was answered after %v", path, took[i])
						}
						continue
					}
					want = append(want, path)
					if a.Code != 200 || !strings.HasPrefix(a.Body.String(), fmt.Sprintf("request %d, GET %s: ", i+1, path)) {
						t.Errorf("%s: %d %s, want its own response", path, a.Code, a.Body)
					}
				}
				if workers == 1 && !slices.Equal(b.begun, want) {
					t.Errorf("begun %q, want %q", b.begun, want)
				}
				if _, err := b.d.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// At twice the capacity, with clients that give up after a second, no request begins
// after its client has left.
func TestAbandonedRequestsDoNotStart(t *testing.T) {
	for _, workers := range []int{1, 4} {
		t.Run(strconv.Itoa(workers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const (
					work     = 500 * time.Millisecond
					patience = time.Second
					clients  = 400
				)
				b := newBubble(t, workers, work)
				left := make([]time.Time, clients)
				dropped := 0
				var mu sync.Mutex
				var all sync.WaitGroup
				for i := range clients {
					all.Go(func() {
						ctx, leave := context.WithCancel(t.Context())
						served := make(chan struct{})
						go func() {
							defer close(served)
							a := httptest.NewRecorder()
							b.ServeHTTP(a, httptest.NewRequest("GET", fmt.Sprintf("/%d", i), nil).WithContext(ctx))
							if a.Code == 503 && ctx.Err() == nil {
								mu.Lock()
								dropped++
								mu.Unlock()
							}
						}()
						select {
						case <-served:
						case <-time.After(patience):
							left[i] = time.Now()
							leave()
							<-served
						}
						leave()
					})
					time.Sleep(work / time.Duration(2*workers))
				}
				all.Wait()

				spared := 0
				for i, left := range left {
					began := b.at[fmt.Sprintf("/%d", i)]
					switch {
					case left.IsZero():
					case began.IsZero():
						spared++
					case began.After(left):
						t.Errorf("%d began %v after its client had left", i, began.Sub(left))
					}
				}
				t.Logf("begun %d, dropped %d, left before their turn %d", len(b.begun), dropped, spared)
				if spared == 0 && workers == 1 {
					t.Error("no client left before its turn, so the test shows nothing")
				}
				if len(b.begun) < clients/2 {
					t.Errorf("only %d have begun, so clients that left took capacity from others", len(b.begun))
				}
				if _, err := b.d.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The same over sockets. The clients' times are compared with those in the program's
// log.
func TestLogsAgree(t *testing.T) {
	t.Parallel()
	const (
		work     = 250 * time.Millisecond
		patience = time.Second
		clients  = 40
		late     = 100 * time.Millisecond // time for the program to notice that a client has left
	)
	p := start(t, "-work", work.String())
	left := make([]time.Time, clients)
	stalled := stalls(t)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c, err := net.Dial("tcp", p.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, "GET /client-%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", i)
			answer, err := io.ReadAll(c)
			status, body, _ := strings.Cut(string(answer), "\r\n\r\n")
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				c.Close()
				left[i] = time.Now()
			case err != nil, strings.Contains(status, " 200 ") && !strings.Contains(body, fmt.Sprintf(" GET /client-%d:", i)),
				!strings.Contains(status, " 200 ") && !strings.Contains(status, " 503 "):
				t.Errorf("client %d: %q, %v", i, answer, err)
			}
		})
		time.Sleep(work / 2) // twice the capacity
	}
	all.Wait()
	// When the program has ended, nothing is queued any more.
	p.Cmd.Process.Signal(syscall.SIGTERM)
	<-p.Ended

	began := make(map[string]time.Time)
	for _, match := range regexp.MustCompile(`time=(\S+) level=INFO msg=begins number=\d+ path=/client-(\d+)\n`).FindAllStringSubmatch(p.Text(), -1) {
		at, err := time.Parse(time.RFC3339, match[1])
		if err != nil {
			t.Fatal(err)
		}
		began[match[2]] = at
	}
	allowed := late + stalled()
	spared := 0
	for i, left := range left {
		at, ok := began[strconv.Itoa(i)]
		switch {
		case left.IsZero():
		case !ok:
			spared++
		case at.Sub(left) > allowed:
			t.Errorf("client %d left at %v, and its request began at %v", i, left, at)
		}
	}
	t.Logf("%d began, %d left before their turn; allowed delay %v", len(began), spared, allowed)
	if spared == 0 || len(began) == 0 {
		t.Errorf("of %d clients %d began and %d left before their turn, so the test shows nothing", clients, len(began), spared)
	}
}

// stalls returns a function that returns the longest time by which the machine delayed
// this process. The test does not blame the program for such delays.
func stalls(t *testing.T) func() time.Duration {
	var longest atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			before := time.Now()
			time.Sleep(time.Millisecond)
			longest.Store(max(longest.Load(), int64(time.Since(before)-time.Millisecond)))
		}
	}()
	return func() time.Duration {
		stop()
		return time.Duration(longest.Load())
	}
}

// direct uses a new connection for every request, so that it never repeats one.
var direct = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, url string) (status int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := direct.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return response.StatusCode, string(read), err
}

// After a signal the program ends once every waiting client has a response.
func TestStop(t *testing.T) {
	t.Parallel()
	p := start(t, "-work", "100ms")
	url := "http://" + p.Addr()
	var served, tooLate atomic.Int64
	full := make(chan struct{}, 1)
	var all sync.WaitGroup
	send := func() {
		switch status, body, err := get(t.Context(), url); {
		case err != nil:
			t.Error(err)
		case status == 200:
			served.Add(1)
		case status == 503 && strings.Contains(body, "gave its place"):
			select {
			case full <- struct{}{}:
			default:
			}
		case status == 503 && strings.Contains(body, "shutting down"):
			tooLate.Add(1)
		default:
			t.Errorf("%d %q", status, body)
		}
	}
	late := time.After(proctest.Patience)
	for waiting := true; waiting; {
		all.Go(send)
		select {
		case <-full:
			waiting = false
		case <-late:
			t.Fatal("no request was dropped")
		case <-time.After(2 * time.Millisecond):
		}
	}
	p.Cmd.Process.Signal(syscall.SIGTERM)
	all.Wait()
	<-p.Ended
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.Text(), "cut_off=0 never_started=0") {
		t.Errorf("exit status %d", code)
	}
	begun := strings.Count(p.Text(), "msg=begins")
	t.Logf("%d served, %d came too late", served.Load(), tooLate.Load())
	if int(served.Load()) != begun || begun < 1+10 {
		t.Errorf("%d have begun and %d have a response; want the same, and at least %d", begun, served.Load(), 1+10)
	}
	if _, _, err := get(t.Context(), url); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

func TestBadWorkers(t *testing.T) {
	for _, n := range []string{"0", "-1", "1001", "x"} {
		p := start(t, "-workers", n)
		<-p.Ended
		if code := p.Cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(p.Text(), "-workers") {
			t.Errorf("-workers %s: exit status %d, %s", n, code, p.Text())
		}
	}
}
