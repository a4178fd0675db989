package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A daemon is a database server that belongs to one contender.
type daemon struct {
	cmd    *exec.Cmd
	output string        // the file that its messages go to
	exited chan struct{} // closed when it has ended, after err was set
	err    error
}

// startDaemon starts cmd, whose messages go to a file in dir, and returns when ready
// does not fail any more. ready is called until then, or until ctx ends.
func startDaemon(ctx context.Context, cmd *exec.Cmd, dir string, ready func(context.Context) error) (*daemon, error) {
	d := &daemon{cmd: cmd, output: filepath.Join(dir, filepath.Base(cmd.Path)+".out"), exited: make(chan struct{})}
	file, err := os.Create(d.output)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(d.exited)
		d.err = cmd.Wait()
	}()
	for {
		err := ready(ctx)
		if err == nil {
			return d, nil
		}
		select {
		case <-d.exited:
			return nil, fmt.Errorf("%s has ended (%v): %s", cmd.Path, d.err, d.said())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s is not ready (%w): %s", cmd.Path, err, d.said()), d.end(os.Kill))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end sends a signal that tells the server to stop, and waits for that. It is killed if
// it takes too long.
func (d *daemon) end(stop os.Signal) error {
	d.cmd.Process.Signal(stop) // fails if it has ended, which exited tells
	select {
	case <-d.exited:
		return nil
	case <-time.After(stopTime / 2):
		d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("%s had not stopped after %v, and was killed", d.cmd.Path, stopTime/2)
	}
}

// said returns the last messages.
func (d *daemon) said() string {
	text, err := os.ReadFile(d.output)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-2048):]))
}

// freePort returns a port that nobody listens on. Another program may take it before it
// is used; then the server says so, and the run ends.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
