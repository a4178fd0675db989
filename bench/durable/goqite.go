package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"maragu.dev/goqite"
	"maragu.dev/goqite/jobs"
	_ "modernc.org/sqlite"
)

// goqiteJobs are messages of goqite. It deletes a job that has run, so results stand in
// a table of their own.
type goqiteJobs struct {
	write *sql.DB // one connection, since SQLite has one writer
	read  *sql.DB
	queue *goqite.Queue
}

func openGoqite(ctx context.Context, dir string, workers int) (*service, error) {
	j, err := openSQLite(ctx, filepath.Join(dir, "jobs.db"))
	if err != nil {
		return nil, err
	}
	f := newFront()
	running, stop := context.WithCancel(context.Background())
	var runs sync.WaitGroup
	if workers > 0 {
		// It polls, by default every 100 ms.
		r := jobs.NewRunner(jobs.NewRunnerOpts{Queue: j.queue, Limit: workers, PollInterval: time.Millisecond})
		r.Register("work", func(ctx context.Context, message []byte) error { return j.work(ctx, f, message) })
		runs.Go(func() { r.Start(running) })
	}
	return &service{f.handler(j), func(context.Context) error {
		stop()
		runs.Wait()
		return errors.Join(j.write.Close(), j.read.Close())
	}}, nil
}

// tables has the columns that goqite reads and writes, the index for its search, and
// the results. The table that goqite proposes has a trigger besides, which notes the time
// of each change. It is left out, in goqite's favour.
const tables = `
create table goqite (
	id       text    not null primary key default (hex(randomblob(16))),
	queue    text    not null,
	priority integer not null default 0,
	created  text    not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
	timeout  text    not null,
	received integer not null default 0,
	body     blob    not null
);
create index goqite_next on goqite (queue, priority desc, created);
create table results (id text not null primary key, response blob not null) without rowid;
`

// openSQLite opens a database that has each commit on disk before it returns.
func openSQLite(ctx context.Context, path string) (*goqiteJobs, error) {
	connect := "file:" + path + "?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"
	write, err := sql.Open("sqlite", connect)
	if err != nil {
		return nil, err
	}
	write.SetMaxOpenConns(1)
	var journal string
	var synchronous int
	err = errors.Join(
		write.QueryRowContext(ctx, "pragma journal_mode").Scan(&journal),
		write.QueryRowContext(ctx, "pragma synchronous").Scan(&synchronous))
	if err == nil && (journal != "wal" || synchronous != 2) {
		err = fmt.Errorf("journal_mode is %q and synchronous %d; want wal and 2, which is FULL", journal, synchronous)
	}
	if err == nil {
		_, err = write.ExecContext(ctx, tables)
	}
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read, err := sql.Open("sqlite", connect)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(4)
	return &goqiteJobs{write, read, goqite.New(goqite.NewOpts{DB: write, Name: "jobs", Timeout: time.Minute})}, nil
}

const goqiteID = 26 // the length of an id, which a message begins with

func (j *goqiteJobs) accept(ctx context.Context, body []byte) (string, error) {
	id := rand.Text()
	_, err := jobs.Create(ctx, j.queue, "work", goqite.Message{Body: append([]byte(id), body...)})
	return id, err
}

func (j *goqiteJobs) work(ctx context.Context, f *front, message []byte) error {
	id := string(message[:goqiteID])
	_, err := j.write.ExecContext(ctx, "insert into results (id, response) values (?, ?) on conflict do nothing", id, []byte(outcome))
	if err == nil {
		f.ended(id)
	}
	return err
}

// result knows the jobs that have ended. Of others it cannot say whether there are any,
// since goqite's own ids are not those that clients have.
func (j *goqiteJobs) result(ctx context.Context, id string) (response []byte, at stage, err error) {
	err = j.read.QueryRowContext(ctx, "select response from results where id = ?", id).Scan(&response)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, open, nil
	case err != nil:
		return nil, open, err
	}
	return response, done, nil
}
