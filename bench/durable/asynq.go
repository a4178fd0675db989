package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// asynqQueue is the queue that asynq uses when none is named.
const asynqQueue = "default"

// asynqJobs are tasks of asynq, which keeps their results as long as it is told.
type asynqJobs struct {
	client    *asynq.Client
	inspector *asynq.Inspector
}

func openAsynq(ctx context.Context, dir string, workers int) (*service, error) {
	redis, connect, err := startRedis(ctx, dir)
	if err != nil {
		return nil, err
	}
	f := newFront()
	jobs := &asynqJobs{asynq.NewClient(connect), asynq.NewInspector(connect)}
	stop := func() {}
	if workers > 0 {
		server := asynq.NewServer(connect, asynq.Config{
			Concurrency: workers,
			// It polls. By default an idle server looks once a second, and a job alone would
			// wait for half of that.
			TaskCheckInterval: time.Millisecond,
			LogLevel:          asynq.ErrorLevel,
		})
		work := asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
			_, err := t.ResultWriter().Write([]byte(outcome))
			f.ended(t.ResultWriter().TaskID()) // asynq stores the end when this has returned
			return err
		})
		if err := server.Start(work); err != nil {
			return nil, errors.Join(err, redis.end(syscall.SIGTERM))
		}
		stop = server.Shutdown
	}
	return &service{f.handler(jobs), func(context.Context) error {
		stop()
		return errors.Join(jobs.client.Close(), jobs.inspector.Close(), redis.end(syscall.SIGTERM))
	}}, nil
}

func (j *asynqJobs) accept(ctx context.Context, body []byte) (string, error) {
	info, err := j.client.EnqueueContext(ctx, asynq.NewTask("work", body), asynq.Retention(time.Hour))
	if err != nil {
		return "", err
	}
	return info.ID, nil
}

func (j *asynqJobs) result(_ context.Context, id string) ([]byte, stage, error) {
	info, err := j.inspector.GetTaskInfo(asynqQueue, id)
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound), errors.Is(err, asynq.ErrQueueNotFound):
		return nil, open, errUnknown
	case err != nil:
		return nil, open, err
	case info.State == asynq.TaskStateCompleted:
		return info.Result, done, nil
	case info.State == asynq.TaskStateActive:
		return nil, ending, nil // the job is empty, so it is about to end
	}
	return nil, open, nil
}

// startRedis starts a server that has each write on disk before it answers.
func startRedis(ctx context.Context, dir string) (*daemon, asynq.RedisClientOpt, error) {
	port, err := freePort()
	if err != nil {
		return nil, asynq.RedisClientOpt{}, err
	}
	path, err := find("redis-server")
	if err != nil {
		return nil, asynq.RedisClientOpt{}, err
	}
	connect := asynq.RedisClientOpt{Addr: fmt.Sprintf("127.0.0.1:%d", port), Password: rand.Text(), PoolSize: 64}
	cmd := exec.Command(path, "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("bind 127.0.0.1\nport %d\nrequirepass %s\ndir %q\nsave \"\"\nappendonly yes\nappendfsync always\n", port, connect.Password, dir))
	client := redis.NewClient(&redis.Options{Addr: connect.Addr, Password: connect.Password})
	defer client.Close()
	d, err := startDaemon(ctx, cmd, dir, func(ctx context.Context) error {
		set, err := client.ConfigGet(ctx, "append*").Result()
		if err != nil {
			return err
		}
		if set["appendonly"] != "yes" || set["appendfsync"] != "always" {
			return fmt.Errorf("appendonly is %q and appendfsync %q; want yes and always", set["appendonly"], set["appendfsync"])
		}
		return nil
	})
	return d, connect, err
}
