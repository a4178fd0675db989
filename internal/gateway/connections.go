package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Time-outs of a connection to the upstream. None of them limits how long the upstream
// may take to answer.
const (
	dialTimeout = 10 * time.Second
	lingerTime  = 100 * time.Millisecond
)

// A lane has a number of places at the upstream, and the connections for them. An
// http.Transport bounds connections alone, which for HTTP/2 is no bound of requests.
type lane struct {
	places
	timeout time.Duration // that the upstream has for a request; 0: none
	idle    time.Duration
	files   chan struct{}                  // has one for each connection that is open; nil: no limit
	conns   atomic.Pointer[http.Transport] // for as many requests as there are places
}

func (l *lane) open(workers int, idle, timeout time.Duration, files chan struct{}) {
	l.idle, l.timeout, l.files = idle, timeout, files
	l.places.resize(max(workers, 1))
	l.conns.Store(l.connections(max(workers, 1)))
}

// resize sees to it that there are places for so many workers.
func (l *lane) resize(workers int) {
	old := l.conns.Load()
	if workers == 0 || old.MaxConnsPerHost == workers {
		return
	}
	l.conns.Store(l.connections(workers))
	old.CloseIdleConnections()
	l.places.resize(workers)
}

// lasting returns a context for a request of a job. It ends when the upstream's time has
// passed, or with the returned function, but not with the job.
func (l *lane) lasting(job context.Context) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(job)
	if l.timeout > 0 {
		return context.WithTimeout(ctx, l.timeout)
	}
	return context.WithCancel(ctx)
}

// roundTrip sends a request and returns the response, whose body is still to be read.
func (l *lane) roundTrip(r *http.Request) (*http.Response, error) {
	conns := l.conns.Load()
	response, err := conns.RoundTrip(r)
	if conns != l.conns.Load() {
		// This one has come late, and its connection would be kept for others.
		conns.CloseIdleConnections()
	}
	return response, err
}

// connections returns a transport for so many requests at once.
func (l *lane) connections(workers int) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return l.dial(ctx, dialer, network, addr)
		},
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        l.idle,
		DisableKeepAlives:      l.idle == 0,
		MaxConnsPerHost:        workers,
		MaxIdleConnsPerHost:    workers,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // what the client asks for is what it gets
		ForceAttemptHTTP2:      true,
	}
}

// dial returns a connection that counts until it is closed. Of those that are being
// closed there can be any number beside one for each worker, if many clients leave. A
// job that needs one more waits.
func (l *lane) dial(ctx context.Context, dialer *net.Dialer, network, addr string) (net.Conn, error) {
	release := func() {}
	if l.files != nil {
		select {
		case l.files <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		release = func() { <-l.files }
	}
	c, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		release()
		return nil, err
	}
	return &lingering{Conn: c, closed: make(chan struct{}), release: release}, nil
}

// places bounds the requests at the upstream, also of jobs that have ended as late. The
// first to wait is the first to get one.
type places struct {
	mu      sync.Mutex
	most    int
	taken   int
	waiting []chan struct{} // each closed when it is given a place; no more than workers
}

// take waits for a place, until ctx ends.
func (p *places) take(ctx context.Context) error {
	p.mu.Lock()
	if p.taken < p.most {
		p.taken++
		p.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	p.waiting = append(p.waiting, turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, turn); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else { // its turn has come at the same time
		p.taken--
		p.handOnLocked()
	}
	return ctx.Err()
}

// give returns a place.
func (p *places) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.handOnLocked()
}

// size returns how many places there are.
func (p *places) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most
}

func (p *places) resize(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
	p.handOnLocked()
}

func (p *places) handOnLocked() {
	for p.taken < p.most && len(p.waiting) > 0 {
		close(p.waiting[0])
		p.waiting = slices.Delete(p.waiting, 0, 1)
		p.taken++
	}
}

// A lingering connection is closed when the upstream has closed it too, or a moment
// later: until then the upstream may still be at work on its last request.
type lingering struct {
	net.Conn
	once    sync.Once
	closed  chan struct{}
	release func() // called when it is closed
}

func (c *lingering) Close() (err error) {
	c.once.Do(func() {
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			c.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, io.LimitReader(c.Conn, 64<<10))
		}
		err = c.Conn.Close()
		c.release()
		close(c.closed)
	})
	return err
}

// A used is the connection that a request got.
type used struct{ conn net.Conn }

// traced returns the request with a note of the connection that it will get.
func traced(r *http.Request) (*http.Request, *used) {
	u := new(used)
	return r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { u.conn = info.Conn },
	})), u
}

// settle waits until the connection, which will not be used again, is closed.
func (u *used) settle(ctx context.Context) {
	conn := u.conn
	if outer, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = outer.NetConn()
	}
	if c, ok := conn.(*lingering); ok {
		select {
		case <-c.closed:
		case <-ctx.Done():
		}
	}
}
