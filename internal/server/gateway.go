package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// Time-outs of the gateway besides that of the job: none of them limits how long
// the upstream may take to answer.
const (
	dialTimeout = 10 * time.Second
	idleConn    = 90 * time.Second
	lingerTime  = 100 * time.Millisecond
)

// A Gateway passes requests on to another service, with the X-Forwarded-* headers
// of its own in place of the client's, and answers for it where it does not: 504 if
// it is late, else 502.
//
// A job could end when its response is there. To the upstream the request is there
// until its handler has returned: only then it takes another one from the connection,
// or closes it. So there are never more connections than workers, and a job waits for
// the end of one that will not be used again.
type Gateway struct {
	proxy httputil.ReverseProxy
	conns atomic.Pointer[http.Transport] // for as many workers as there are
}

// Resize changes the number of workers of d, and of connections with it. A job must
// not find fewer connections than there are workers, or it would wait with a worker
// in hand: so there are more before there are more workers, and fewer only after.
//
// Connections that are in use go on; until the requests on them have ended the
// upstream may see more than that. With no workers the connections stay as they are,
// for the jobs that run. Calls must not overlap.
func (g *Gateway) Resize(d *holdfast.Dispatcher, workers int) error {
	before := g.conns.Load().MaxConnsPerHost
	if workers > before {
		g.connect(workers)
	}
	err := d.Resize(workers)
	if err != nil {
		workers = before
	}
	g.connect(workers)
	return err
}

// connect sees to it that there are connections for so many workers.
func (g *Gateway) connect(workers int) {
	old := g.conns.Load()
	if workers == 0 || old.MaxConnsPerHost == workers {
		return
	}
	g.conns.Store(connections(workers))
	old.CloseIdleConnections()
}

// ServeHTTP passes a request on.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// What is read of the response is the gateway's until it is with the client's job.
	var read budget.Hold
	read.Open(budget.From(w).Budget(), 0)
	defer read.Close()
	g.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), holdKey{}, &read)))
}

type holdKey struct{}

// RoundTrip implements http.RoundTripper for the proxy.
func (g *Gateway) RoundTrip(r *http.Request) (*http.Response, error) {
	conns := g.conns.Load()
	response, err := conns.RoundTrip(r)
	if conns != g.conns.Load() {
		// This one has come late, and its connection would be kept for others.
		conns.CloseIdleConnections()
	}
	return response, err
}

// connections returns a transport for so many workers.
func connections(workers int) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &lingering{Conn: c, closed: make(chan struct{})}, nil
		},
		TLSHandshakeTimeout:    dialTimeout,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        idleConn,
		MaxConnsPerHost:        max(workers, 1),
		MaxIdleConnsPerHost:    max(workers, 1),
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // what the client asks for is what it gets
		ForceAttemptHTTP2:      true,
	}
}

// NewGateway returns a Gateway to the service at upstream, whose responses may have
// at most maxResponse bytes.
func NewGateway(upstream *url.URL, workers int, maxResponse int64, log *slog.Logger) *Gateway {
	g := new(Gateway)
	g.conns.Store(connections(workers))
	g.proxy = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.URL.RawQuery = r.In.URL.RawQuery // also what ReverseProxy cannot parse: it is not for us to read
			for name := range r.Out.Header {
				if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" {
					delete(r.Out.Header, name)
				}
			}
			r.SetXForwarded()
			r.Out = traced(r.Out)
		},
		Transport: g,
		// The response is in memory anyway before a client gets it. Read here, one
		// that breaks off is told from one that does not.
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == http.StatusSwitchingProtocols {
				return unusable("the upstream switches protocols, which a queued request cannot")
			}
			read, _ := r.Request.Context().Value(holdKey{}).(*budget.Hold)
			body, err := problem.ReadAll(r.Body, r.ContentLength, maxResponse, read)
			r.Body.Close()
			if err != nil {
				return err
			}
			if int64(len(body)) > maxResponse {
				return unusable(fmt.Sprintf("the response of the upstream is too large; want at most %d bytes", maxResponse))
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if r.Close {
				settle(r.Request)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil && err != problem.ErrNoMemory {
				log.Warn("upstream failed", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			late, ok := errors.AsType[net.Error](err)
			why, known := errors.AsType[unusable](err)
			switch {
			case err == problem.ErrNoMemory:
				problem.NoMemory(w, budget.From(w).Budget(), "no memory is left for the response")
			case errors.Is(err, context.DeadlineExceeded) || ok && late.Timeout():
				problem.Write(w, http.StatusGatewayTimeout, "the upstream has not answered in time")
			case known:
				problem.Write(w, http.StatusBadGateway, string(why))
			default:
				problem.Write(w, http.StatusBadGateway, "the upstream has not answered, or not completely")
			}
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return g
}

// unusable says why a response of the upstream cannot be passed on.
type unusable string

func (u unusable) Error() string { return string(u) }

// A lingering connection is closed when the upstream has closed it too, or a moment
// later: until then the upstream may still be at work on its last request.
type lingering struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *lingering) Close() (err error) {
	c.once.Do(func() {
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			c.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, io.LimitReader(c.Conn, 64<<10))
		}
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// A used is the connection that a request got.
type used struct{ conn net.Conn }

type usedKey struct{}

// traced returns the request with a note of the connection that it will get.
func traced(r *http.Request) *http.Request {
	u := new(used)
	ctx := context.WithValue(r.Context(), usedKey{}, u)
	return r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { u.conn = info.Conn },
	}))
}

// settle waits until the connection of a request is closed.
func settle(r *http.Request) {
	conn := r.Context().Value(usedKey{}).(*used).conn
	if outer, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = outer.NetConn()
	}
	if c, ok := conn.(*lingering); ok {
		select {
		case <-c.closed:
		case <-r.Context().Done():
		}
	}
}
