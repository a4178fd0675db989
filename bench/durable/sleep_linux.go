package main

import (
	"syscall"
	"time"
)

// sleep blocks the thread for about d, and sometimes for less.
func sleep(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	syscall.Nanosleep(&t, nil) // a signal may end it
}
