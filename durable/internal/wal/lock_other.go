//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package wal

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// openLock fails: without a lock a second process would damage the log.
func openLock(string) (*os.File, error) {
	return nil, fmt.Errorf("no lock on folders is known for %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
