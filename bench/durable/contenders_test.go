package main

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveContender starts a contender in this process. It returns its address.
func serveContender(t *testing.T, c contender, workers int) string {
	t.Helper()
	installed(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	s, err := c.open(ctx, reachable(t), workers)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.handler)
	t.Cleanup(func() {
		server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		if err := s.close(ctx); err != nil {
			t.Error(err)
		}
	})
	return server.Listener.Addr().String()
}

// Each contender runs every job, and each client reads the result of its own.
func TestContenders(t *testing.T) {
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			addr := serveContender(t, c, 4)
			var clients sync.WaitGroup
			for range 8 {
				client := dial(t, addr)
				clients.Go(func() {
					for range 10 {
						if err := acceptAndRead(client); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			clients.Wait()
		})
	}
}

// Without workers, jobs are accepted and wait, and clients are told so.
func TestContendersWithoutWorkers(t *testing.T) {
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, serveContender(t, c, 0))
			for range 3 {
				if err := accept(client); err != nil {
					t.Fatal(err)
				}
				a, err := client.do(fmt.Appendf(nil, "GET %s/response HTTP/1.1\r\nHost: x\r\n\r\n", client.answer.location))
				if err != nil || a.status != 202 {
					t.Errorf("the result is %d %q, error %v; want 202", a.status, a.body, err)
				}
			}
		})
	}
}

// A server that does not start says why, and one that is never ready is ended.
func TestDaemonFails(t *testing.T) {
	never := func(context.Context) error { return fmt.Errorf("not yet") }
	for script, want := range map[string]string{
		"echo no such option; exit 3": "no such option",
		"exec sleep 60":               "not yet",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := startDaemon(ctx, exec.Command("sh", "-c", script), t.TempDir(), never)
		if err == nil || !strings.Contains(err.Error(), want) || time.Since(begin) > 30*time.Second {
			t.Errorf("%s: error %v after %v; want one with %q", script, err, time.Since(begin), want)
		}
	}
}

func TestPostgresVersion(t *testing.T) {
	for path, want := range map[string]int{"/usr/lib/postgresql/15/bin/initdb": 15, "/usr/lib/postgresql/9.6/bin/initdb": 0, filepath.Join("a", "b"): 0} {
		if got := postgresVersion(path); got != want {
			t.Errorf("%s is version %d, want %d", path, got, want)
		}
	}
}

// A measurement has a new folder, which is gone when it has ended, also if it fails.
func TestFolderIsRemoved(t *testing.T) {
	c := &comparison{options: &options{}, dir: reachable(t)}
	plain := contenders[1]
	for _, want := range []error{nil, fmt.Errorf("failed")} {
		err := c.with(t.Context(), plain, 1, func(addr string) error {
			if err := acceptAndRead(dial(t, addr)); err != nil {
				t.Error(err)
			}
			if found, err := filepath.Glob(filepath.Join(c.dir, "*", "log")); err != nil || len(found) != 1 {
				t.Errorf("the logs are %v, error %v; want one", found, err)
			}
			return want
		})
		if err != want {
			t.Errorf("error %v; want %v", err, want)
		}
		if left, err := filepath.Glob(filepath.Join(c.dir, "*")); err != nil || len(left) > 0 {
			t.Errorf("%v is left, error %v", left, err)
		}
	}
}
