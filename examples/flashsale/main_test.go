package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

// asProgram, set in the environment, makes the test binary run as the program.
const asProgram = "FLASHSALE_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A process is a running program, with the addresses of its two listeners.
type process struct {
	*proctest.Process
	addr, operator string
}

// start starts the program and waits until it listens.
func start(t *testing.T, args ...string) process {
	t.Helper()
	p := launch(t, append([]string{"-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0"}, args...)...)
	return process{p, p.AwaitLog(regexp.MustCompile(`listening on (\S+) for buyers`)), p.AwaitLog(regexp.MustCompile(`, on (\S+) for the operator`))}
}

func launch(t *testing.T, args ...string) *proctest.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return proctest.Launch(t, []string{asProgram + "=1"}, program, args...)
}

// unused returns an address on which nothing listens. It prefers a second loopback
// address, so that no client's connection takes the port in the meantime.
func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listening waits until something listens on addr.
func listening(t *testing.T, p *proctest.Process, network, addr string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-p.Ended:
			t.Fatalf("%v has ended", p.Cmd)
		default:
		}
		if time.Since(began) > proctest.Patience {
			t.Fatal(err)
		}
	}
}

// resize changes the number of workers through the admin listener.
func (p process) resize(t *testing.T, workers int) {
	t.Helper()
	body := fmt.Sprintf("{\"workers\":%d}", workers)
	response, answer, err := newClient(t, p.operator).send(t.Context(), "PATCH", "/dispatcher", body)
	if err != nil || response.StatusCode != 200 || !strings.HasPrefix(answer, strings.TrimSuffix(body, "}")+",") {
		t.Errorf("%d workers: %v %q, %v", workers, response, answer, err)
	}
}

// A client counts the answers that it gets.
type client struct {
	t    *testing.T
	url  string
	http *http.Client

	bought, soldOut, refused, failed atomic.Int64
}

// newClient returns a client of the server at addr, which may be the path of a socket.
// It never repeats a request.
func newClient(t *testing.T, addr string) *client {
	network, host := "tcp", addr
	if strings.HasPrefix(addr, "/") {
		network, host = "unix", "shop"
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return &client{t: t, url: "http://" + host, http: &http.Client{
		Timeout:   proctest.Patience,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

func (c *client) send(ctx context.Context, method, target, text string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.url+target, strings.NewReader(text))
	if err != nil {
		return nil, "", err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// buy sends one /ping and counts the answer. It returns false if the server is gone.
func (c *client) buy(ctx context.Context) (open bool) {
	response, body, err := c.send(ctx, "GET", "/ping", "")
	switch {
	case err != nil:
		c.failed.Add(1)
		return false
	case response.StatusCode == 200 && body == "\"sold\"\n":
		c.bought.Add(1)
	case response.StatusCode == 410 && body == "\"sold_out\"\n":
		c.soldOut.Add(1)
	case response.StatusCode == 503 && body == "\"refused\"\n":
		c.refused.Add(1)
	default:
		c.t.Errorf("/ping: %d %q", response.StatusCode, body)
	}
	return true
}

// load sends n requests from the given number of concurrent buyers. It stops early if
// the server is gone.
func (c *client) load(n, buyers int) {
	var sent atomic.Int64
	var all sync.WaitGroup
	for range buyers {
		all.Go(func() {
			for sent.Add(1) <= int64(n) && c.buy(c.t.Context()) {
			}
		})
	}
	all.Wait()
}

// must sends a request and fails the test unless the answer has the status.
func (c *client) must(status int, method, target string) string {
	c.t.Helper()
	response, body, err := c.send(c.t.Context(), method, target, "")
	if err != nil || response.StatusCode != status {
		c.t.Fatalf("%s %s: %v %q, %v, want %d", method, target, response, body, err, status)
	}
	return body
}

// counters is the answer of /cache.
type counters struct {
	Added     int `json:"added"`
	Remaining int `json:"remaining"`
	Sold      int `json:"sold"`
	SoldOut   int `json:"sold_out"`
	Refused   int `json:"refused"`
	Gone      int `json:"gone"`
	Calls     int `json:"calls"`
}

// String formats the counters as the program does when it ends.
func (c counters) String() string {
	return fmt.Sprint(map[string]int{
		"added": c.Added, "remaining": c.Remaining, "sold": c.Sold, "sold_out": c.SoldOut,
		"refused": c.Refused, "gone": c.Gone, "calls": c.Calls,
	})
}

// matching returns the counters that match the clients' answers, for the given number of
// items and no call in progress.
func matching(added int, clients ...*client) counters {
	n := counters{Added: added}
	for _, c := range clients {
		n.Sold += int(c.bought.Load())
		n.SoldOut += int(c.soldOut.Load())
		n.Refused += int(c.refused.Load())
	}
	n.Remaining = added - n.Sold
	n.Calls = n.Sold + n.SoldOut + n.Refused
	return n
}

// counters reads /cache, which must be consistent at any time.
func (c *client) counters() (n counters) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must(200, "GET", "/cache")), &n); err != nil {
		c.t.Fatal(err)
	}
	switch {
	case n.Remaining < 0:
		c.t.Errorf("oversold: %v", n)
	case n.Added%20 != 0:
		c.t.Errorf("items were lost or added: %v", n)
	case n.Calls < n.Sold+n.SoldOut+n.Refused+n.Gone:
		c.t.Errorf("more outcomes than calls: %v", n)
	}
	return n
}

// await reads /cache until the counters are ready.
func (c *client) await(what string, ready func(counters) bool) counters {
	c.t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		n := c.counters()
		if ready(n) {
			return n
		}
		if time.Since(began) > proctest.Patience {
			c.t.Fatalf("not %s: %v", what, n)
		}
	}
}

// checkSoldOut checks the counters against the client's answers. All items must be sold.
func (c *client) checkSoldOut(items int) {
	c.t.Helper()
	n := c.counters()
	if want := matching(items, c); n != want || n.Sold != items || c.failed.Load() != 0 {
		c.t.Errorf("the counters are %v, the client got %v and %d without an answer; want %d sold", n, want, c.failed.Load(), items)
	}
	c.t.Log(n)
}

// sellOut buys the remaining items.
func (c *client) sellOut() {
	c.t.Helper()
	for range 100 {
		if c.counters().Remaining <= 0 {
			return
		}
		c.buy(c.t.Context())
	}
	c.t.Error("more items can be bought than there were")
}

// rush sells 40 items to more buyers than there are places, and checks the counters
// during the sale.
func rush(c *client, during func()) {
	c.t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.load(600, 150)
	}()
	c.await("selling", func(n counters) bool { return n.Sold > 0 })
	c.must(200, "POST", "/add")
	during()
	for looking := true; looking; {
		select {
		case <-over:
			looking = false
		case <-time.After(time.Millisecond):
			c.counters()
		}
	}
	c.sellOut()
	c.buy(c.t.Context())
	c.checkSoldOut(40)
}

// The whole stock is sold, and no more, whatever the number of workers.
func TestNeverOversold(t *testing.T) {
	for _, workers := range []int{1, 8, 64} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			p := start(t, "-workers", fmt.Sprint(workers), "-work", "10ms")
			rush(newClient(t, p.addr), func() {})
		})
	}
}

func TestResizeUnderLoad(t *testing.T) {
	p := start(t, "-work", "10ms")
	c := newClient(t, p.addr)
	rush(c, func() {
		for _, n := range []int{8, 64, 0, 2, 30, 1} {
			p.resize(t, n)
			c.counters()
		}
	})
}

// Without workers, a hundred buyers wait and any more are refused at once.
func TestFull(t *testing.T) {
	const queue = 100
	p := start(t, "-workers", "0", "-work", "0s")
	c := newClient(t, p.addr)
	var waiting sync.WaitGroup
	for range queue {
		waiting.Go(func() { c.buy(t.Context()) })
	}
	// It is random which hundred wait, but all others are refused.
	for range 7 {
		waiting.Go(func() { c.buy(t.Context()) })
	}
	c.await("full", func(n counters) bool { return n.Refused == 7 })
	p.resize(t, 3)
	waiting.Wait()
	c.checkSoldOut(20)
	if c.refused.Load() != 7 || c.soldOut.Load() != queue-20 {
		t.Errorf("%d refused, %d sold out", c.refused.Load(), c.soldOut.Load())
	}
}

// A buyer who leaves the queue is never served.
func TestGoneFromTheQueue(t *testing.T) {
	p := start(t, "-workers", "0", "-work", "0s")
	c := newClient(t, p.addr)
	ctx, leave := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range 101 {
		waiting.Go(func() { c.buy(ctx) })
	}
	// Wait for an answer, since the counter changes before it.
	for began := time.Now(); c.refused.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > proctest.Patience {
			t.Fatal("no buyer was refused")
		}
	}
	leave()
	waiting.Wait()
	c.await("empty", func(n counters) bool { return n.Gone == 100 })
	p.resize(t, 8)
	for began := time.Now(); c.bought.Load() == 0 && time.Since(began) < proctest.Patience; {
		c.buy(t.Context())
	}
	n := c.counters()
	want := matching(20, c)
	want.Gone, want.Calls = 100, want.Calls+100
	if n != want || n.Sold != 1 {
		t.Errorf("%v, want %v", n, want)
	}
}

// A buyer who leaves while being served has bought, and the worker finishes the work.
func TestGoneFromTheWorker(t *testing.T) {
	p := start(t, "-work", "1s")
	c := newClient(t, p.addr)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		c.await("serving", func(n counters) bool { return n.Sold == 1 })
		leave()
	}()
	c.buy(ctx)
	p.Cmd.Process.Signal(syscall.SIGTERM)
	<-p.Ended
	p.ended(t, 0, "0 cut off, 0 never started", counters{Added: 20, Remaining: 19, Sold: 1, Calls: 1})
}

// The program gets SIGTERM in the middle of a sale. It serves the waiting buyers, and
// its counters match the clients' answers.
func TestStopInTheMiddle(t *testing.T) {
	for _, workers := range []int{1, 8, 64} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			p := start(t, "-workers", fmt.Sprint(workers), "-work", "20ms")
			c := newClient(t, p.addr)
			for range 4 {
				c.must(200, "GET", "/add")
			}
			var sale sync.WaitGroup
			sale.Go(func() { c.load(1_000_000, 120) })
			c.await("selling", func(n counters) bool { return n.Sold > 0 })
			p.Cmd.Process.Signal(syscall.SIGTERM)
			<-p.Ended
			sale.Wait()
			p.ended(t, 0, "0 cut off, 0 never started", matching(100, c))
		})
	}
}

// A log whose reader has gone, as tee has after Ctrl-C, ends nothing.
func TestStopWithoutALog(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read.Close()
	p := exec.Command(program, "-addr", unused(t), "-admin", unused(t))
	p.Env = append(os.Environ(), asProgram+"=1")
	p.Stdout, p.Stderr = write, write
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	late := time.AfterFunc(proctest.Patience, func() { p.Process.Kill() })
	defer late.Stop()
	for _, addr := range []string{p.Args[2], p.Args[4]} {
		for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
				break
			}
			if time.Since(began) > proctest.Patience {
				t.Fatal(err)
			}
		}
	}
	p.Process.Signal(os.Interrupt)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// ended checks the exit status and the last line of the program's log.
func (p process) ended(t *testing.T, status int, report string, want counters) {
	t.Helper()
	if code := p.Cmd.ProcessState.ExitCode(); code != status {
		t.Errorf("exit status %d, want %d", code, status)
	}
	if said := p.AwaitLog(regexp.MustCompile(`stopped: (.*)\n`)); said != fmt.Sprintf("%s, %v", report, want) {
		t.Errorf("the program logs\n%s\nwant\n%s, %v", said, report, want)
	}
}

// Waiting buyers get an answer even if there are no workers.
func TestStopWhilePaused(t *testing.T) {
	p := start(t, "-workers", "0")
	c := newClient(t, p.addr)
	var waiting sync.WaitGroup
	for range 101 {
		waiting.Go(func() { c.buy(t.Context()) })
	}
	c.await("full", func(n counters) bool { return n.Refused == 1 })
	p.Cmd.Process.Signal(syscall.SIGTERM)
	waiting.Wait()
	<-p.Ended
	p.ended(t, 1, "0 cut off, 100 never started", matching(20, c))
	if c.refused.Load() != 101 {
		t.Errorf("%d refused", c.refused.Load())
	}
}

// Bad requests change nothing, and the public listener does not serve the admin pages.
func TestBadRequests(t *testing.T) {
	p := start(t)
	c := newClient(t, p.addr)
	before := c.counters()
	for _, test := range []struct {
		method, target, body string
		status               int
	}{
		{"HEAD", "/ping", "", 400},
		{"HEAD", "/add", "", 400},
		{"GET", "/ping", "x", 400},
		{"POST", "/ping", "x", 400},
		{"POST", "/add", "x", 400},
		{"GET", "/", "", 404},
		{"GET", "/pings", "", 404},
		{"OPTIONS", "/ping", "", 400},
		{"DELETE", "/add", "", 400},
		{"POST", "/dispatcher", "", 404},
		{"PATCH", "/dispatcher", `{"workers":8}`, 400},
		{"GET", "/debug/pprof/", "", 404},
	} {
		response, body, err := c.send(t.Context(), test.method, test.target, test.body)
		if err != nil || response.StatusCode != test.status {
			t.Errorf("%s %s %q: %v %q, %v, want %d", test.method, test.target, test.body, response, body, err, test.status)
		}
	}
	if after := c.counters(); after != before || after != (counters{Added: 20, Remaining: 20}) {
		t.Errorf("%v, want %v", after, before)
	}
	if page := newClient(t, p.operator).must(200, "GET", "/"); !strings.Contains(page, "<html") {
		t.Errorf("the admin page is %.100q", page)
	}
}

func TestBadStart(t *testing.T) {
	for _, test := range []struct {
		flag, value, said string
		status            int
	}{
		{"-workers", "-2", "Workers", 1},
		{"-workers", "1000001", "1000001", 1},
		{"-workers", "x", "-workers", 2},
		{"-work", "1", "-work", 2},
		{"-addr", "nowhere", "nowhere", 1},
		{"-admin", "nowhere", "nowhere", 1},
		{"-redis", "/nowhere/redis.sock", "redis.sock", 1},
	} {
		p := launch(t, "-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0", test.flag, test.value)
		<-p.Ended
		if code := p.Cmd.ProcessState.ExitCode(); code != test.status || !strings.Contains(p.Text(), test.said) {
			t.Errorf("%s %s: exit status %d, %s", test.flag, test.value, code, p.Text())
		}
	}
}

func TestMemory(t *testing.T) {
	testStock(t, memory())
}

// testStock sells the items of a new stock, and 20 more, from many goroutines. Each sale
// must return a different number.
func testStock(t *testing.T, s stock) {
	t.Helper()
	var sales [41]atomic.Int64
	sell := func() {
		n, err := s.add("sold", 1)
		if n < 0 || n > 40 || err != nil {
			t.Errorf("%d, %v, want a sale of 40, or 0", n, err)
			return
		}
		sales[n].Add(1)
	}
	var all sync.WaitGroup
	for buyer := range 64 {
		all.Go(func() {
			if buyer == 32 {
				if n, err := s.add("added", 20); n != 40 || err != nil {
					t.Errorf("%d, %v, want 40 added", n, err)
				}
			}
			for range 8 {
				sell()
			}
		})
	}
	all.Wait()
	for range 21 { // the goroutines may have ended before the other 20 were added
		sell()
	}
	for n := range sales {
		if times := sales[n].Load(); n > 0 && times != 1 {
			t.Errorf("item %d was sold %d times", n, times)
		}
	}
	for i, counter := range []string{"sold_out", "refused", "gone", "calls"} {
		if n, err := s.add(counter, i+1); n != i+1 || err != nil {
			t.Errorf("%s: %d, %v", counter, n, err)
		}
	}
	checkStock(t, s, 40)
}

// checkStock checks that a stock that testStock has used has sold n items.
func checkStock(t *testing.T, s stock, n int) {
	t.Helper()
	want := map[string]int{"added": 40, "sold": n, "remaining": 40 - n, "sold_out": 1, "refused": 2, "gone": 3, "calls": 4}
	if got, err := read(s); !maps.Equal(got, want) || err != nil {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
