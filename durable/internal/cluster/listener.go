package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"holdfast/internal/store"
)

// What nodes say to each other in headers.
const (
	headTerm    = "Holdfast-Term"
	headJob     = "Holdfast-Job"
	headAttempt = "Holdfast-Attempt"
	headSeen    = "Holdfast-Seen"
	headLimit   = "Holdfast-Limit" // in nanoseconds
	headKind    = "Holdfast-Kind"
)

// maxWire is the greatest request or response that nodes send each other, in bytes.
const maxWire = 64 << 20

// routes are those of the node listener, which only other nodes can reach.
func (n *Node) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /run", n.serveRun)
	mux.HandleFunc("POST /cancel", n.serveCancel)
	mux.HandleFunc("POST /forget", n.serveForget)
	mux.HandleFunc("POST /pass", n.servePass)
	return mux
}

// admit reports whether an order comes from the leader of the latest term, or answers it.
func (n *Node) admit(w http.ResponseWriter, r *http.Request) (term uint64, ok bool) {
	term, err := strconv.ParseUint(r.Header.Get(headTerm), 10, 64)
	switch {
	case err != nil:
		http.Error(w, headTerm+" is no number", http.StatusBadRequest)
	case !n.members.see(term):
		http.Error(w, errOld.Error(), http.StatusConflict)
	default:
		return term, true
	}
	return 0, false
}

// serveRun runs a job and answers with its end. The one who asked may leave and come again.
func (n *Node) serveRun(w http.ResponseWriter, r *http.Request) {
	term, ok := n.admit(w, r)
	if !ok {
		return
	}
	o := order{term: term}
	var known bool
	o.id, known = store.ParseID(r.Header.Get(headJob))
	attempt, err := strconv.Atoi(r.Header.Get(headAttempt))
	seen, err2 := strconv.Atoi(r.Header.Get(headSeen))
	limit, err3 := strconv.ParseInt(r.Header.Get(headLimit), 10, 64)
	if !known || err != nil || err2 != nil || err3 != nil {
		http.Error(w, "want an id, an attempt, the one that was looked at, and a limit", http.StatusBadRequest)
		return
	}
	o.attempt, o.seen, o.limit = attempt, seen, time.Duration(limit)
	if o.request, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxWire)); err != nil {
		http.Error(w, "the request did not come whole", http.StatusBadRequest)
		return
	}
	l, err := n.runs.start(o)
	switch {
	case errors.Is(err, errBusy):
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n.due()
	select {
	case <-l.done:
		w.Header().Set("Content-Length", strconv.Itoa(len(l.end)))
		w.Write(l.end)
	case <-r.Context().Done():
	}
}

func (n *Node) serveCancel(w http.ResponseWriter, r *http.Request) {
	if _, ok := n.admit(w, r); !ok {
		return
	}
	if id, ok := store.ParseID(r.Header.Get(headJob)); ok {
		n.runs.cancel(id)
	}
}

func (n *Node) serveForget(w http.ResponseWriter, r *http.Request) {
	if _, ok := n.admit(w, r); !ok {
		return
	}
	packed, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(maxRuns*runSize)))
	if err != nil {
		return
	}
	n.runs.forget(unpack(packed))
}

// post sends a message to a node.
func (n *Node) post(ctx context.Context, addr, path string, header http.Header, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = header
	return n.client.Do(r)
}

func (o *order) header() http.Header {
	return http.Header{
		headTerm: {strconv.FormatUint(o.term, 10)}, headJob: {o.id.String()},
		headAttempt: {strconv.Itoa(o.attempt)}, headSeen: {strconv.Itoa(o.seen)}, headLimit: {strconv.FormatInt(int64(o.limit), 10)},
	}
}

// again is the time between two tries of the same message.
const again = 50 * time.Millisecond

// run lets a node run what o orders, and returns the end. It tries until ctx ends, which it
// must when the node is gone: a node that has started the job will answer at some time.
// errBusy means that the node has not started it, errOld that this node leads no more.
func (n *Node) run(ctx context.Context, p *peer, o order) ([]byte, error) {
	if p.name == n.Node {
		return n.runHere(ctx, o)
	}
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	for {
		end, err := n.runOnce(ctx, p, o)
		switch {
		case err == nil, errors.Is(err, errBusy), errors.Is(err, errOld):
			return end, err
		case !sent.Load():
			return nil, fmt.Errorf("%w: it cannot be reached: %w", errBusy, err)
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (n *Node) runOnce(ctx context.Context, p *peer, o order) ([]byte, error) {
	resp, err := n.post(ctx, p.addr, "/run", o.header(), o.request)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	end, err := io.ReadAll(io.LimitReader(resp.Body, maxWire+1))
	switch {
	case resp.StatusCode == http.StatusConflict:
		return nil, errOld
	case resp.StatusCode == http.StatusTooManyRequests:
		return nil, errBusy
	case resp.StatusCode == http.StatusBadRequest: // a version that speaks otherwise
		return failureOf(http.StatusBadGateway, fmt.Sprintf("node %s could not read the job: %s", p.name, bytes.TrimSpace(end))), nil
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK || len(end) == 0 || len(end) > maxWire:
		return nil, fmt.Errorf("cluster: node %s has answered %s, %d bytes", p.name, resp.Status, len(end))
	}
	return end, nil
}

// runHere is run at this node itself.
func (n *Node) runHere(ctx context.Context, o order) ([]byte, error) {
	if !n.members.see(o.term) {
		return nil, errOld
	}
	l, err := n.runs.start(o)
	if err != nil {
		return nil, err
	}
	select {
	case <-l.done:
		return l.end, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cancel cancels a job at a node, and tries until ctx ends.
func (n *Node) cancel(ctx context.Context, p *peer, o order) {
	if p.name == n.Node {
		if n.members.see(o.term) {
			n.runs.cancel(o.id)
		}
		return
	}
	for {
		resp, err := n.post(ctx, p.addr, "/cancel", o.header(), nil)
		if err == nil {
			resp.Body.Close()
			return
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return
		}
	}
}

// forget tells a node that ends are stored. If that is lost, its next beat names them again.
func (n *Node) forget(ctx context.Context, p *peer, term uint64, needless map[store.ID]run) {
	if p.name == n.Node {
		n.runs.forget(needless)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	resp, err := n.post(ctx, p.addr, "/forget", http.Header{headTerm: {strconv.FormatUint(term, 10)}}, pack(needless))
	if err == nil {
		resp.Body.Close()
	}
}
