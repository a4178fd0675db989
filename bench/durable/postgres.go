package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// startPostgres makes a cluster in dir and starts a server that has each commit on disk
// before it answers.
func startPostgres(ctx context.Context, dir string) (d *daemon, url string, err error) {
	programs, found := postgresPrograms()
	if !found {
		return nil, "", errors.New(needsPostgres())
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	owner, err := postgresOwner()
	if err != nil {
		return nil, "", err
	}
	home, password := filepath.Join(dir, "postgres"), rand.Text()
	if err := initPostgres(ctx, programs, home, password, owner); err != nil {
		return nil, "", err
	}
	// No socket: its folder would have to be one that the server's user may write to,
	// and short enough.
	server := exec.Command(filepath.Join(programs, "postgres"), "-D", filepath.Join(home, "data"), "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=on", "-c", "synchronous_commit=on")
	server.Dir, server.SysProcAttr = home, owner
	url = fmt.Sprintf("postgres://bench:%s@127.0.0.1:%d/postgres?sslmode=disable", password, port)
	d, err = startDaemon(ctx, server, dir, func(ctx context.Context) error { return checkPostgres(ctx, url) })
	return d, url, err
}

// postgresOwner returns how the server is started: as root it refuses to, and Debian's
// user postgres is there for it.
func postgresOwner() (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("postgres does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// initPostgres makes a cluster in home/data, with a superuser bench.
func initPostgres(ctx context.Context, programs, home, password string, owner *syscall.SysProcAttr) error {
	file := filepath.Join(home, "password")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		return err
	}
	if owner != nil {
		for _, path := range []string{home, file} {
			if err := os.Chown(path, int(owner.Credential.Uid), int(owner.Credential.Gid)); err != nil {
				return err
			}
		}
	}
	// It need not sync what it writes, since that is done before the measurement.
	init := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "-D", filepath.Join(home, "data"), "-U", "bench",
		"--pwfile", file, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	init.Dir, init.SysProcAttr = home, owner
	if text, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb, in a folder that its user must be able to reach: %w: %s", err, text)
	}
	return nil
}

// checkPostgres returns nil if the server answers, and promises the disk.
func checkPostgres(ctx context.Context, url string) error {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for _, name := range []string{"fsync", "synchronous_commit"} {
		var value string
		if err := c.QueryRow(ctx, "show "+name).Scan(&value); err != nil {
			return err
		}
		if value != "on" {
			return fmt.Errorf("%s is %q; want on", name, value)
		}
	}
	return nil
}
