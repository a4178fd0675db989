package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = time.Minute      // how long a contender may take until it says its address
	stopTime  = 20 * time.Second // and until it has ended
)

// A process is a contender that runs.
type process struct {
	addr  string
	cmd   *exec.Cmd
	stdin io.Closer
	read  chan struct{} // closed when its standard error has been read to the end
}

// launch starts a contender in a process of its own, which is this program again.
func launch(ctx context.Context, c contender, dir string, workers int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve", "-dir", dir, "-workers", strconv.Itoa(workers), c.name)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stderr, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = writer
	err = cmd.Start()
	writer.Close()
	if err != nil {
		stderr.Close()
		return nil, err
	}
	p := &process{cmd: cmd, stdin: stdin, read: make(chan struct{})}
	if err := p.address(ctx, stderr); err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

// address reads the line with the address, and passes on what the process says besides.
func (p *process) address(ctx context.Context, stderr *os.File) error {
	stop := context.AfterFunc(ctx, func() { stderr.SetReadDeadline(time.Now()) })
	stderr.SetReadDeadline(time.Now().Add(startTime))
	lines := bufio.NewReader(stderr)
	said := ""
	for p.addr == "" {
		line, err := lines.ReadString('\n')
		if addr, ok := strings.CutPrefix(line, "addr="); ok {
			p.addr = strings.TrimSpace(addr)
			break
		}
		if said += line; err != nil || len(said) > 64<<10 {
			stderr.Close()
			close(p.read)
			return fmt.Errorf("it does not say its address (%v): %s", err, strings.TrimSpace(said))
		}
	}
	stop()
	stderr.SetReadDeadline(time.Time{})
	go func() {
		defer close(p.read)
		defer stderr.Close()
		io.Copy(os.Stderr, lines)
	}()
	return nil
}

// end tells the process to end, by the end of its standard input, and waits for it.
func (p *process) end() error {
	p.stdin.Close()
	kill := time.AfterFunc(stopTime, func() { p.cmd.Process.Kill() })
	err := p.cmd.Wait()
	if !kill.Stop() {
		return fmt.Errorf("it had not ended after %v, and was killed", stopTime)
	}
	<-p.read
	return err
}

// serve is the process of a contender. It ends when its standard input does, so also
// when the program that has started it is killed, or on SIGTERM.
func serve(args []string) error {
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	dir := set.String("dir", "", "the folder of the data")
	workers := set.Int("workers", 0, "jobs that run at once; 0: none")
	if err := set.Parse(args); err != nil {
		return err
	}
	i := slices.IndexFunc(contenders, func(c contender) bool { return c.name == set.Arg(0) })
	if i < 0 {
		return fmt.Errorf("serve %q; want a contender", set.Arg(0))
	}
	// What the terminal sends comes to the whole group, and nobody may read any more what
	// is written here. Neither may end this process before it has ended its database. To
	// ignore these signals would make the database ignore them as well.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGHUP, syscall.SIGPIPE)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	s, err := contenders[i].open(ctx, *dir, *workers)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, s.close(ctx))
	}
	server := &http.Server{Handler: s.handler}
	go server.Serve(l)
	fmt.Fprintf(os.Stderr, "addr=%v\n", l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended <- nil
	}()
	<-ended
	ctx, cancel = context.WithTimeout(context.Background(), stopTime/2)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), s.close(ctx))
}
