// Package durable makes the jobs of [holdfast.Jobs] outlive the process. A request that
// was answered with 202 runs, also if the process is killed or the power fails; its
// response can be read after a restart.
//
// The memory decides, as it does without this package: bound, order, urgency, shares and
// cancellation are the same. Each decision is written to a log before a client is told of
// it: that a job was accepted before the 202, and how it has ended before it is shown as
// ended. The log is a NATS JetStream, which runs in the process and opens no port; its
// folder is all there is. [Open] is for one process; with [Join] several share the jobs,
// and the log is replicated among them.
//
// Jobs run at least once. A job that was running when the process ended is started again,
// and its handler can tell: the request has a Job-Attempt header, 1 for the first start,
// and an Idempotency-Key, which is the client's own or the job's id in quotes. A job whose
// end was written never runs again.
package durable

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"holdfast"
	"holdfast/durable/internal/wal"
	"holdfast/histogram"
	"holdfast/internal/httpjob"
)

// A Config says where jobs are stored, and what runs them.
type Config struct {
	// Dir is the folder of the log. It is created if it is not there. One process may
	// own it.
	Dir string

	// Dispatcher runs the jobs. It must be new: nothing was submitted to it.
	Dispatcher *holdfast.Dispatcher

	// Jobs is as for [holdfast.NewJobs]. Retain, RetainJobs and RetainBytes bound what is
	// kept across a restart, too. MaxBody and MaxResponse may be up to 60 MiB.
	Jobs holdfast.JobsConfig

	// Handler serves the requests that were stored before a restart. It gets them as the
	// handler did that Async wraps, so it is mostly that one, a mux if there are several.
	// What it answers is the response of the job, also if it is 404 since a route is gone.
	// The values of a request's context do not survive.
	Handler http.Handler

	// NoSync answers before the job is on disk. A crash of the process then loses
	// nothing, a power failure the jobs of about the last second.
	NoSync bool

	// Attempts is how often the process may have died while a job ran: one more start could
	// kill it once more, so the job fails then. A shutdown that cuts the job off is no
	// death. If zero, 3 is used.
	Attempts int

	// Logger gets a record of the jobs that are back after a restart, and what is wrong with
	// the log. If nil, slog.Default() is used.
	Logger *slog.Logger
}

// Jobs are jobs that outlive the process. Its methods may be called by any number of
// goroutines at once.
type Jobs struct {
	*holdfast.Jobs
	core *httpjob.Jobs // that Jobs is a face of
	log  *wal.Log
	stop context.CancelFunc
	done chan struct{} // closed when clean has returned
}

// maxContent leaves room in a record for what there is beside a body or a response: a
// header, which is mostly 1 MiB at most. The end of a job that no record can hold would
// never be told.
const maxContent = wal.MaxRecord - 4<<20

// Open opens the log, or creates it, and submits the jobs again that had not ended, in the
// order in which they were accepted. It returns when they have their places in the queue,
// also if that is shorter than it was. The listener should not be open before.
// ctx ends the reading of the log.
//
// If the folder cannot be used, the error says why, and nothing was changed.
func Open(ctx context.Context, c Config) (*Jobs, error) {
	switch {
	case c.Dir == "":
		return nil, errors.New("durable: Config.Dir is empty; want a folder")
	case c.Dispatcher == nil || c.Handler == nil:
		return nil, errors.New("durable: Config.Dispatcher or Config.Handler is nil; want what runs the jobs")
	case c.Jobs.MaxBody > maxContent || c.Jobs.MaxResponse > maxContent:
		return nil, fmt.Errorf("durable: Config.Jobs has MaxBody %d and MaxResponse %d; want at most %d, which a record of the log can hold", c.Jobs.MaxBody, c.Jobs.MaxResponse, maxContent)
	case c.Attempts < 0:
		return nil, fmt.Errorf("durable: Config.Attempts is %d; want 0 (the default) or more", c.Attempts)
	}
	jobs, err := holdfast.NewJobs(c.Dispatcher, c.Jobs)
	if err != nil {
		return nil, err
	}
	c.Logger = cmp.Or(c.Logger, slog.Default())
	log, err := wal.Open(ctx, wal.Options{Dir: c.Dir, Sync: !c.NoSync, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	j := &Jobs{Jobs: jobs, core: httpjob.Of(jobs.Async(c.Handler)), log: log, done: make(chan struct{})}
	if err := j.restore(ctx, c); err != nil {
		log.Close(ctx)
		return nil, err
	}
	cleaning, stop := context.WithCancel(context.Background())
	j.stop = stop
	go j.clean(cleaning)
	return j, nil
}

func (j *Jobs) restore(ctx context.Context, c Config) error {
	j.core.Store.Journaled(j.log)
	if err := j.log.Replay(ctx, j.core.Store.Replay); err != nil {
		return fmt.Errorf("durable: reading %s: %w", c.Dir, err)
	}
	n, err := j.core.Restore(c.Handler, cmp.Or(c.Attempts, 3), nil)
	if kept := j.Stats().Kept; n+kept > 0 {
		c.Logger.Info("stored jobs are back", "to_run", n, "ended", kept, "dir", c.Dir)
	}
	return err
}

// Close writes what is yet to be written and closes the log. Call it after the dispatcher's
// Shutdown and that of the HTTP server. It blocks until that is done or ctx ends; then what
// was not written is as if the process had been killed.
//
// What a shutdown has cut off is stored, and runs after the next Open.
func (j *Jobs) Close(ctx context.Context) error {
	j.stop()
	<-j.done
	j.core.Store.CutOff()
	return j.log.Close(ctx)
}

// LogStats are the state of the log.
type LogStats struct {
	Bytes   int64               // on disk
	Waiting int                 // records that are not on disk yet
	Err     error               // why they do not get there; nil if they do
	Syncs   histogram.Histogram // how long writes take
}

// Log returns the state of the log. It does not block.
func (j *Jobs) Log() LogStats {
	s := j.log.Stats()
	return LogStats{s.Bytes, s.Waiting, j.log.Err(), s.Syncs}
}

const (
	cleanEvery = time.Second
	cleanFrom  = 64 << 20 // bytes below which a log is not worth cleaning
	cleanStep  = 32 << 20 // bytes of the log that are looked at in one step
)

// clean keeps the log from growing: when most of it is garbage, the oldest part is read,
// what is still needed of it is appended once more, and the part goes.
func (j *Jobs) clean(ctx context.Context) {
	defer close(j.done)
	store := j.core.Store
	again := time.NewTicker(cleanEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
		for j.log.Stats().Bytes > cleanFrom+2*store.Live() {
			if freed, err := j.log.Clean(ctx, cleanStep, store.CopyIfAlive); err != nil || freed == 0 {
				break
			}
		}
	}
}
