package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"holdfast/internal/proctest"
)

// service returns the path of an external program that the test needs. If it is not
// installed, service skips the test, or fails it if HOLDFAST_REQUIRE_SERVICES is set.
func service(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", name)) // often not in the PATH of users
	}
	switch {
	case err == nil:
	case os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "":
		t.Fatalf("%s is not installed, and HOLDFAST_REQUIRE_SERVICES is set", name)
	default:
		t.Skipf("%s is not installed", name)
	}
	return path
}

// scratch returns a new folder with a path short enough for sockets.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flashsale")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startRedis starts an empty Redis server and returns its socket.
func startRedis(t *testing.T) (socket string, p *proctest.Process) {
	t.Helper()
	program := service(t, "redis-server")
	dir := scratch(t)
	socket = filepath.Join(dir, "redis.sock")
	p = proctest.Launch(t, nil, program, "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700",
		"--dir", dir, "--save", "", "--appendonly", "no", "--daemonize", "no")
	listening(t, p, "unix", socket)
	return socket, p
}

// startProxy returns the socket of an nginx in front of the servers at addrs.
func startProxy(t *testing.T, addrs ...string) string {
	t.Helper()
	program := service(t, "nginx")
	dir := scratch(t)
	config := filepath.Join(dir, "nginx.conf")
	// A single process, so that it ends with the test. nginx must not repeat a request
	// that got no answer at another server: the first may have sold.
	text := fmt.Sprintf(`daemon off;
master_process off;
pid nginx.pid;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	upstream shop { server %s; }
	server {
		listen unix:%s/nginx.sock;
		location = /ping { proxy_pass http://shop; proxy_next_upstream off; }
		location = /add { proxy_pass http://shop; proxy_next_upstream off; }
		location = /cache { proxy_pass http://shop; }
		location / { return 404; }
	}
}
`, strings.Join(addrs, "; server "), dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := proctest.Launch(t, nil, program, "-p", dir, "-c", config, "-e", "stderr")
	socket := filepath.Join(dir, "nginx.sock")
	listening(t, p, "unix", socket)
	return socket
}

func TestShared(t *testing.T) {
	socket, _ := startRedis(t)
	s, err := shared(socket)
	if err != nil {
		t.Fatal(err)
	}
	testStock(t, s)
	again, err := shared(socket) // a later process uses the existing stock
	if err != nil {
		t.Fatal(err)
	}
	checkStock(t, again, 40)
}

// Three processes sell the same stock, through one proxy.
func TestThreeProcesses(t *testing.T) {
	service(t, "redis-server")
	service(t, "nginx")
	for _, workers := range []int{1, 8, 64} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			socket, _ := startRedis(t)
			var shops []process
			var addrs []string
			for range 3 {
				p := start(t, "-workers", fmt.Sprint(workers), "-work", "10ms", "-redis", socket)
				shops, addrs = append(shops, p), append(addrs, p.addr)
			}
			c := newClient(t, startProxy(t, addrs...))
			rush(c, func() {
				for i, p := range shops {
					p.resize(t, 1+31*i)
				}
			})
		})
	}
}

// One of three processes gets SIGTERM in the middle of a sale. Nothing is lost, and the
// counters match the clients' answers.
func TestOneOfThreeStops(t *testing.T) {
	socket, _ := startRedis(t)
	var shops []process
	for range 3 {
		shops = append(shops, start(t, "-workers", "8", "-work", "20ms", "-redis", socket))
	}
	var all sync.WaitGroup
	var clients []*client
	for _, p := range shops { // not through the proxy, which would answer for the stopped process
		c := newClient(t, p.addr)
		clients = append(clients, c)
		all.Go(func() { c.load(600, 50) })
	}
	c := clients[1]
	c.await("selling", func(n counters) bool { return n.Sold > 0 })
	shops[0].Cmd.Process.Signal(syscall.SIGTERM)
	<-shops[0].Ended
	all.Wait()
	c.sellOut()
	if n, want := c.counters(), matching(20, clients...); n != want || n.Sold != 20 {
		t.Errorf("the counters are %v, the clients got %v", n, want)
	}
	if code := shops[0].Cmd.ProcessState.ExitCode(); code != 0 || clients[1].failed.Load()+clients[2].failed.Load() != 0 {
		t.Errorf("exit status %d, %d and %d without an answer", code, clients[1].failed.Load(), clients[2].failed.Load())
	}
}

// Without Redis nothing is sold, and the answer is 502.
func TestRedisEnds(t *testing.T) {
	socket, p := startRedis(t)
	c := newClient(t, start(t, "-work", "0s", "-redis", socket).addr)
	c.buy(t.Context())
	if n, want := c.counters(), (counters{Added: 20, Remaining: 19, Sold: 1, Calls: 1}); n != want {
		t.Errorf("%v, want %v", n, want)
	}
	p.Cmd.Process.Kill()
	<-p.Ended
	for _, target := range []string{"/ping", "/add", "/cache"} {
		if body := c.must(502, "GET", target); body != "\"the stock cannot be reached\"\n" {
			t.Errorf("%s: %q", target, body)
		}
	}
}
