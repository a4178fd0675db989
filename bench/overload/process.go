package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// startTime is how long a contender may take until it accepts connections.
const startTime = 10 * time.Second

// A process is a contender that runs.
type process struct {
	url string
	cmd *exec.Cmd // nil: there is none
}

// peakMiB returns the most memory that the process has had, or 0 where the system
// does not tell.
func (p *process) peakMiB() float64 {
	if p.cmd == nil {
		return 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if err != nil || found == nil {
		return 0
	}
	kib, _ := strconv.ParseFloat(string(found[1]), 64)
	return kib / 1024
}

func (p *process) end() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

// launch starts a program that logs its address as addr=host:port, within its
// first lines.
func launch(ctx context.Context, name string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no settings of the user's
	// A pipe of our own: Wait closes that of StderrPipe under whoever reads it.
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = writer
	err = cmd.Start()
	writer.Close()
	if err != nil {
		reader.Close()
		return nil, err
	}
	p := &process{cmd: cmd}
	reader.SetReadDeadline(time.Now().Add(startTime))
	lines := bufio.NewReader(reader)
	address := regexp.MustCompile(`addr=(\S+)`)
	for said := ""; ; {
		line, err := lines.ReadString('\n')
		said += line
		if found := address.FindStringSubmatch(line); found != nil {
			p.url = "http://" + found[1] + "/"
			break
		}
		if err != nil || len(said) > 4096 {
			p.end()
			reader.Close()
			return nil, fmt.Errorf("%s %s does not say its address: %s", name, strings.Join(args, " "), strings.TrimSpace(said))
		}
	}
	reader.SetReadDeadline(time.Time{})
	go func() {
		io.Copy(io.Discard, lines)
		reader.Close()
	}()
	return p, nil
}

// installed is a contender that takes part where its program is found.
func installed(program, name string, start func(ctx context.Context, path, dir, upstream string, l limit) (*process, error)) contender {
	path, err := exec.LookPath(program)
	if err != nil {
		// Debian keeps servers where only root looks.
		if path, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			return contender{name: name, missing: program + " is not installed"}
		}
	}
	return contender{name: name, start: func(ctx context.Context, dir, upstream string, l limit) (*process, error) {
		return start(ctx, path, dir, upstream, l)
	}}
}

// nginx has no queue by concurrency but in its commercial form. What it has is a
// queue by rate, so it is told the rate that the upstream can do.
func startNginx(ctx context.Context, path, dir, upstream string, l limit) (*process, error) {
	config := `daemon off; master_process off; pid %[1]s/nginx.pid; error_log stderr crit;
events { worker_connections 16000; }
http {
	access_log off; keepalive_requests 1000000;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	limit_req_zone $server_name zone=all:1m rate=%[2]dr/m;
	upstream machine { server %[3]s; keepalive 64; }
	server {
		listen %[4]s;
		location / {
			limit_req zone=all burst=%[5]d;
			proxy_http_version 1.1; proxy_set_header Connection "";
			proxy_pass http://machine;
		}
	}
}
`
	return startWithFile(ctx, dir, func(addr string) string {
		return fmt.Sprintf(config, dir, int(60*l.capacity), upstream, addr, l.queue)
	}, path, "-e", "stderr", "-p", dir, "-c")
}

// HAProxy holds what is beyond maxconn in a queue, by the class that it is given,
// and drops from it whoever has left. The class is the urgency.
func startHAProxy(ctx context.Context, path, dir, upstream string, l limit) (*process, error) {
	config := `defaults
	mode http
	option abortonclose
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	timeout queue %[1]dms
frontend clients
	bind %[2]s
	http-request set-priority-class int(3)
	http-request set-priority-class req.hdr(Priority),word(2,=) if { req.hdr(Priority) -m found }
	default_backend machine
backend machine
	http-reuse always
	http-request deny deny_status 503 if { queue ge %[5]d }
	server upstream %[3]s maxconn %[4]d
`
	return startWithFile(ctx, dir, func(addr string) string {
		return fmt.Sprintf(config, l.patience.Milliseconds(), addr, upstream, l.slots, l.queue)
	}, path, "-db", "-f")
}

// startWithFile starts a program with a configuration file, whose name is its last
// argument, and waits until it accepts connections.
func startWithFile(ctx context.Context, dir string, config func(addr string) string, path string, args ...string) (*process, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, filepath.Base(path)+".conf")
	if err := os.WriteFile(file, []byte(config(addr)), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, append(args, file)...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{url: "http://" + addr + "/", cmd: cmd}
	for begin := time.Now(); time.Since(begin) < startTime; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return p, nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			break
		}
	}
	p.end() // said is complete only then
	return nil, fmt.Errorf("%s does not accept connections: %s", path, strings.TrimSpace(said.String()))
}

// freeAddr returns an address that nobody listens on. Another program may take it
// before it is used; then the contender says so and the run ends.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
