package server

import (
	"fmt"
	"net/url"
)

// Descriptors that are kept free of clients and of the upstream: for the listeners,
// the standard streams, the poller and what looks up names, and for the operator's
// connections, of which a browser opens six.
const (
	reserved     = 16
	adminConns   = 16
	adminRefused = 4
)

// maxFiles is as many open files as are reckoned with.
const maxFiles = 1 << 20

// refusedOf returns how many connections may linger that are being refused. With
// few, a storm of newcomers drives them out before their requests have arrived, and
// these meet with a reset.
func refusedOf(files int) int { return min(max(files/8, 12), 1024) }

// ownOf returns how many open files the server needs besides the connections that
// it serves and those to the upstream.
func ownOf(files int) int { return reserved + refusedOf(files) + adminConns + adminRefused }

// connsOf returns how many connections a limit of open files leaves room for beside
// those to the upstream, and how many of them to use: some are left to what the
// handlers open, and to more workers.
func connsOf(files, upstream int) (most, byDefault int) {
	most = max(files-ownOf(files)-upstream, 1)
	return most, max(most-most/8, 1)
}

// upstreamConns returns how many connections to the upstream there may be with so
// many workers.
func upstreamConns(upstream *url.URL, workers int) int {
	if upstream == nil {
		return 0
	}
	return workers
}

// fit returns an error if there are not enough descriptors for so many workers.
func (c Config) fit(workers int) error {
	own := ownOf(c.Files)
	need := c.MaxConns + upstreamConns(c.Upstream, workers) + own
	switch {
	case need <= c.Files:
		return nil
	case c.Upstream == nil:
		return fmt.Errorf("%d connections (-max-conns) and %d files of the server's own are %d; the limit of open files is %d, want at least %d", c.MaxConns, own, need, c.Files, need)
	}
	return fmt.Errorf("%d connections (-max-conns), one to the upstream for each of %d workers, and %d files of the server's own are %d; the limit of open files is %d", c.MaxConns, workers, own, need, c.Files)
}

// UpstreamFiles returns how many connections to the upstream may be open at once,
// those included that are being closed.
func (c Config) UpstreamFiles() int { return c.Files - ownOf(c.Files) - c.MaxConns }

// Resizable returns an error if the operator may not have so many workers: because
// of -max-workers, or because each needs a descriptor that is not there.
func (c Config) Resizable(workers int) error {
	if most := max(c.MaxWorkers, c.Workers); workers < 0 || workers > most {
		return fmt.Errorf("workers is %d; want 0 (paused) to %d, which -max-workers sets", workers, most)
	}
	if err := c.fit(workers); err != nil {
		return fmt.Errorf("workers is %d: %w; want at most %d workers", workers, err, c.UpstreamFiles())
	}
	return nil
}
