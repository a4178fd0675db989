package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

// riverConns is how many connections handlers and workers share.
const riverConns = 32

// riverJobs are jobs of River, which keeps them with their output for a day.
type riverJobs struct{ client *river.Client[pgx.Tx] }

type riverArgs struct {
	Body string `json:"body"`
}

func (riverArgs) Kind() string { return "work" }

func openRiver(ctx context.Context, dir string, workers int) (*service, error) {
	postgres, url, err := startPostgres(ctx, dir)
	if err != nil {
		return nil, err
	}
	s, err := openRiverOn(ctx, url, workers)
	if err != nil {
		return nil, errors.Join(err, postgres.end(os.Interrupt))
	}
	stop := s.close
	s.close = func(ctx context.Context) error { return errors.Join(stop(ctx), postgres.end(syscall.SIGINT)) }
	return s, nil
}

func openRiverOn(ctx context.Context, url string, workers int) (*service, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = riverConns
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	f := newFront()
	var client *river.Client[pgx.Tx]
	if err = connectAll(ctx, pool); err == nil {
		client, err = riverClient(ctx, pool, f, workers)
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &service{f.handler(&riverJobs{client}), func(ctx context.Context) error {
		defer pool.Close()
		if workers == 0 {
			return nil
		}
		return client.StopAndCancel(ctx)
	}}, nil
}

// connectAll opens all connections of the pool, each of which is a new process of the
// server. The load is not to wait for that.
func connectAll(ctx context.Context, pool *pgxpool.Pool) error {
	for range riverConns {
		c, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer c.Release()
	}
	return nil
}

// riverClient makes the tables, and starts the workers if there are to be any.
func riverClient(ctx context.Context, pool *pgxpool.Pool, f *front, workers int) (*river.Client[pgx.Tx], error) {
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	config := &river.Config{Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if workers == 0 {
		return river.NewClient(riverpgxv5.New(pool), config)
	}
	config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
	// By default it fetches ten times a second, so that 64 workers run 640 jobs at most.
	config.FetchCooldown, config.FetchPollInterval = time.Millisecond, 5*time.Millisecond
	config.Workers = river.NewWorkers()
	if err := river.AddWorkerSafely(config.Workers, &riverWorker{pool: pool, front: f}); err != nil {
		return nil, err
	}
	client, err := river.NewClient(riverpgxv5.New(pool), config)
	if err != nil {
		return nil, err
	}
	return client, client.Start(context.WithoutCancel(ctx))
}

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	pool  *pgxpool.Pool
	front *front
}

// Work completes its job itself, in a transaction. River would do so for many jobs at
// once, but only every 50 to 250 ms, and each client waits for its own.
func (w *riverWorker) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	if err := river.RecordOutput(ctx, outcome); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if err == nil {
		w.front.ended(strconv.FormatInt(job.ID, 10))
	}
	return err
}

func (j *riverJobs) accept(ctx context.Context, body []byte) (string, error) {
	inserted, err := j.client.Insert(ctx, riverArgs{string(body)}, nil)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(inserted.Job.ID, 10), nil
}

func (j *riverJobs) result(ctx context.Context, id string) ([]byte, stage, error) {
	number, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil, open, errUnknown
	}
	job, err := j.client.JobGet(ctx, number)
	switch {
	case errors.Is(err, rivertype.ErrNotFound):
		return nil, open, errUnknown
	case err != nil:
		return nil, open, err
	case job.State != rivertype.JobStateCompleted:
		return nil, open, nil
	}
	var response string
	err = json.Unmarshal(job.Output(), &response)
	return []byte(response), done, err
}
