//go:build unix

package command

import (
	"os/signal"
	"syscall"
)

func ignoreFileSize() { signal.Ignore(syscall.SIGXFSZ) }
