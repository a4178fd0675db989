package command

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// survive lets a write to a log that nobody reads any more fail. Otherwise Go ends
// a process that writes to a broken standard stream, with the jobs that it holds:
// after Ctrl-C a pipe's reader is often the first to go.
func survive() { signal.Ignore(syscall.SIGPIPE) }

// untilSignal returns a context that ends with the first signal to stop. A second
// one ends the process at once, unless it is a hangup: when a terminal closes, the
// kernel and the shell send one each, and service managers may send one right after
// SIGTERM. A hangup that was ignored at the start, as nohup does, stays ignored.
func untilSignal() context.Context {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() {
		signal.Ignore(syscall.SIGHUP) // before stop, so that there is no moment in which it kills
		stop()
	})
	return ctx
}
