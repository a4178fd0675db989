package main

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

// A log whose reader has gone, as tee has after Ctrl-C, costs nothing that is queued,
// and nor does a terminal that closes, which sends a hangup twice.
func TestStopWithoutALog(t *testing.T) {
	t.Parallel()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, signals := range [][]os.Signal{{os.Interrupt}, {syscall.SIGHUP, syscall.SIGHUP}} {
		p := exec.Command(program, "-addr", "127.0.0.1:0", "-work", "200ms")
		p.Env = append(os.Environ(), asProgram+"=1")
		log, err := p.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(proctest.Patience, func() { p.Process.Kill() })
		lines := bufio.NewReader(log)
		first, err := lines.ReadString('\n')
		match := regexp.MustCompile(` addr=(\S+) `).FindStringSubmatch(first)
		if match == nil {
			t.Fatalf("%q, %v", first, err)
		}
		answers := make(chan int, 3)
		for range cap(answers) {
			go func() {
				response, err := http.Get("http://" + match[1] + "/")
				if err != nil {
					answers <- 0
					return
				}
				response.Body.Close()
				answers <- response.StatusCode
			}()
		}
		got := []int{<-answers} // the others are accepted, or come too late
		log.Close()
		for _, signal := range signals {
			p.Process.Signal(signal)
			time.Sleep(20 * time.Millisecond) // as two, not as one
		}
		got = append(got, <-answers, <-answers)
		if err := p.Wait(); err != nil {
			t.Errorf("%v: %v", signals, err)
		}
		late.Stop()
		for _, status := range got {
			if status != 200 {
				t.Errorf("%v: answers %v, want 200", signals, got)
			}
		}
	}
}

// What a client chooses takes little of the log.
func TestLogIsShort(t *testing.T) {
	t.Parallel()
	p := start(t, "-work", "0s")
	if status, _, err := get(t.Context(), "http://"+p.Addr()+"/"+strings.Repeat("%0a", 10_000)); status != 200 || err != nil {
		t.Fatalf("%d, %v", status, err)
	}
	p.AwaitLog(regexp.MustCompile("msg=begins .*\n"))
	if n := len(p.Text()); n > 2000 {
		t.Errorf("the log has %d bytes", n)
	}
}
