package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	httpBody    = `{"sleep_time":0}`
	httpURL     = "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA"
	httpAnswer  = `{"id":"AAAAAAAAAAAAAAAAAAAAAAAAAA","state":"queued","url":"` + httpURL + `"}` + "\n"
	httpClients = 64
)

// serveBare serves the minimum that a handler like /bbb can do: it reads the same body
// and writes as many bytes, including the header.
func serveBare() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Fprintf(os.Stderr, "addr=%v\n", l.Addr())
	must(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			return
		}
		w.Header().Set("Vary", "Prefer")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(httpAnswer)))
		w.Header().Set("Job-State", "queued")
		w.Header().Set("Location", httpURL)
		w.Header().Set("Operation-Location", httpURL)
		w.Header().Set("Content-Location", httpURL+"/response")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, httpAnswer)
	})))
}

// start starts a server. It returns the address that the server logs, and a function
// that ends it.
func start(name string, args ...string) (addr string, end func()) {
	cmd := exec.Command(name, args...)
	stderr, err := cmd.StderrPipe()
	must(err)
	must(cmd.Start())
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadString('\n')
	must(err)
	found := regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(line)
	if found == nil {
		log.Fatalf("%s logs no address, but %q", name, line)
	}
	go io.Copy(io.Discard, lines)
	return found[1], func() { cmd.Process.Kill(); cmd.Wait() }
}

// compareHTTP compares POST /bbb with a bare handler, each in a separate process. It
// loads them in turn.
func compareHTTP(dir string, each time.Duration) {
	binary := filepath.Join(dir, "holdfast")
	cmd := exec.Command("go", "build", "-o", binary, "main.go")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	must(cmd.Run())
	self, err := os.Executable()
	must(err)

	mine, end := start(binary, "-addr", "127.0.0.1:0")
	defer end()
	bare, end := start(self, "-only=bare")
	defer end()

	load, name := loadWithGo, "a load generator in Go"
	if _, err := exec.LookPath("wrk"); err == nil {
		script := filepath.Join(dir, "post.lua")
		must(os.WriteFile(script, fmt.Appendf(nil, "wrk.method = 'POST'\nwrk.body = '%s'\nwrk.headers['Content-Type'] = 'application/json'\n", httpBody), 0o644))
		load, name = func(url string, d time.Duration) float64 { return loadWithWrk(script, url, d) }, "wrk"
	}
	log.Printf("POST /bbb, with %s", name)
	urls := []string{"http://" + mine + "/bbb", "http://" + bare + "/bbb"}
	found := interleave(*rounds, len(urls), func(e int) sample { return sample{NS: 1e9 / load(urls[e], each)} })

	fmt.Printf("\n### POST /bbb, %d connections kept alive, loaded by %s\n\n", httpClients, name)
	fmt.Print("| | requests a second | throughput / bare handler |\n|---|---|---|\n")
	fmt.Printf("| POST /bbb | %.0f | %s |\n", 1e9/medianNS(found[0]), ratio(found[1], found[0]))
	fmt.Printf("| bare handler | %.0f | 1 |\n", 1e9/medianNS(found[1]))
}

var (
	wrkRate  = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkError = regexp.MustCompile(`Non-2xx|Socket errors`)
)

func loadWithWrk(script, url string, d time.Duration) float64 {
	out := command("wrk", "-t1", fmt.Sprintf("-c%d", httpClients), fmt.Sprintf("-d%ds", max(int(d.Seconds()), 1)), "-s", script, url)
	rate := wrkRate.FindSubmatch(out)
	if rate == nil || wrkError.Match(out) {
		log.Fatalf("wrk prints:\n%s", out)
	}
	perSecond, err := strconv.ParseFloat(string(rate[1]), 64)
	must(err)
	return perSecond
}

func loadWithGo(url string, d time.Duration) float64 {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: httpClients}}
	var answers atomic.Int64
	var clients sync.WaitGroup
	begin := time.Now()
	for range httpClients {
		clients.Go(func() {
			for time.Since(begin) < d {
				r, err := client.Post(url, "application/json", bytes.NewReader([]byte(httpBody)))
				must(err)
				_, err = io.Copy(io.Discard, r.Body)
				must(err)
				must(r.Body.Close())
				if r.StatusCode != http.StatusAccepted {
					log.Fatalf("%s answers %s", url, r.Status)
				}
				answers.Add(1)
			}
		})
	}
	clients.Wait()
	return float64(answers.Load()) / time.Since(begin).Seconds()
}
