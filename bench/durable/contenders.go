package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// A contender accepts jobs over HTTP, runs them and keeps their results.
type contender struct {
	name string
	// missing says what it needs that is not installed; "" if it can run.
	missing func() string
	// open starts it with its data in dir, which is empty. With 0 workers it accepts
	// jobs and runs none. ctx ends the start.
	open func(ctx context.Context, dir string, workers int) (*service, error)
}

// A service is a contender that runs.
type service struct {
	handler http.Handler
	// close ends what the service has started. It need not run the jobs that wait.
	close func(ctx context.Context) error
}

// The names that the bars are about. Both promise the disk.
const (
	holdfastName = "Holdfast durable"
	plainName    = "plain file, group commit"
)

var contenders = []contender{
	{holdfastName, nothing, openHoldfast},
	{plainName, nothing, openPlain},
	{"asynq on Redis", needs("redis-server"), openAsynq},
	{"River on Postgres", needsPostgres, openRiver},
	{"goqite on SQLite", nothing, openGoqite},
	{"in memory, nothing on disk", nothing, openMemory},
}

// others are the contenders that promise what Holdfast does.
func others() []string { return []string{"asynq on Redis", "River on Postgres", "goqite on SQLite"} }

// places is how many jobs may wait in the contenders that have a bound, while workers
// run.
const places = 10_000

// The job of every contender does nothing, and answers with outcome.
const outcome = "done"

func nothing() string { return "" }

func needs(program string) func() string {
	return func() string {
		if _, err := find(program); err != nil {
			return program + " is not installed"
		}
		return ""
	}
}

// find returns where a program is. Debian keeps servers where only root looks.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	return path, err
}

// postgresPrograms returns the folder with initdb and postgres. Debian has one for each
// version, and none of them in the PATH; the newest is used.
func postgresPrograms() (dir string, found bool) {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.SortFunc(candidates, func(a, b string) int { return postgresVersion(b) - postgresVersion(a) })
	if path, err := exec.LookPath("initdb"); err == nil {
		candidates = append([]string{path}, candidates...)
	}
	for _, path := range candidates {
		dir := filepath.Dir(path)
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			return dir, true
		}
	}
	return "", false
}

func postgresVersion(path string) int {
	version, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return version
}

func needsPostgres() string {
	if _, found := postgresPrograms(); !found {
		return "postgres and initdb are not installed"
	}
	return ""
}
